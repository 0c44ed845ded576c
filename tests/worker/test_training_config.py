"""What a client's training configuration may contain."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yggdrasill.errors import AccessDenied, InvalidArgument, InvalidConfig, MissingFile, YggdrasillError
from yggdrasill.worker.settings import TrainingSettings
from yggdrasill.worker.training_config import check_training_config, read_training_yaml
from yggdrasill.worker.workspace import Workspace

SETTINGS = TrainingSettings(models=("tiny/*", "black-forest-labs/FLUX*"))
TEXT = """
job: extension
config:
  name: cats
  process:
    - type: sd_trainer
      training_folder: /somewhere/else
      device: cuda:0
      network: {type: lora, linear: 16, linear_alpha: 16}
      save: {dtype: float16, save_every: 250, push_to_hub: true, hf_repo_id: someone/cats, hf_private: true}
      datasets:
        - {folder_path: cats, caption_ext: txt, resolution: [512, 768]}
      train: {batch_size: 1, steps: 2000, lr: 1e-4, optimizer: adamw8bit}
      model: {name_or_path: black-forest-labs/FLUX.1-dev, is_flux: true, quantize: true}
      sample: {sample_every: 250, prompts: ["a cat, 1/2 profile"]}
"""


@pytest.fixture
def data(workspace: Workspace) -> Workspace:
    (workspace.training_data / "cats").mkdir()
    (workspace.models / "base.safetensors").write_bytes(b"x")
    return workspace


def changed(place: str, value: Any) -> dict[str, Any]:
    """Return the configuration with another value at a place such as ``config.process.0.type``."""
    config = read_training_yaml(TEXT)
    *keys, last = place.split(".")
    inner: Any = config
    for key in keys:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner[int(last) if isinstance(inner, list) else last] = value
    return config


def test_a_configuration_of_ai_toolkit_is_accepted_and_bounded(data: Workspace) -> None:
    config = read_training_yaml(TEXT)
    before = copy.deepcopy(config)

    found = check_training_config(config, data, SETTINGS)

    process = found["config"]["process"][0]
    assert process["datasets"][0]["folder_path"] == str((data.training_data / "cats").resolve())
    assert "training_folder" not in process
    assert process["save"] == {"dtype": "float16", "save_every": 250, "push_to_hub": False}
    assert process["train"]["lr"] == 1e-4
    assert process["sample"]["prompts"] == ["a cat, 1/2 profile"]
    assert config == before


def test_a_learning_rate_that_yaml_reads_as_text_is_a_number(data: Workspace) -> None:
    assert yaml.safe_load("1e-4") == "1e-4"
    for text, number in (("1e-4", 1e-4), ("1E-5", 1e-5), ("0.5", 0.5), (".5e3", 500.0)):
        found = check_training_config(changed("config.process.0.train.lr", text), data, SETTINGS)
        assert found["config"]["process"][0]["train"]["lr"] == number


@pytest.mark.parametrize(
    "text",
    [
        "job: ${HF_TOKEN}",
        'job: "\\x24{HF_TOKEN}"',
        "${A}: b",
        "a: &x [1]\nb: *x",
        "a: [1",
        "- 1",
        "3",
        "",
        "a: !!python/object/apply:os.system [ls]",
        "a: " + "[" * 3000,
        "x" * 300_000,
    ],
)
def test_yaml_that_is_no_training_configuration_is_refused_with_a_code(data: Workspace, text: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        check_training_config(read_training_yaml(text), data, SETTINGS)
    assert caught.value.details["code"] == "invalid_training_config"
    assert "HF_TOKEN" not in caught.value.message


@pytest.mark.parametrize(
    "place, value",
    [
        ("job", "train"),
        ("job", None),
        ("config", None),
        ("config.name", "../cats"),
        ("config.name", None),
        ("config.process", []),
        ("config.process", {"type": "sd_trainer"}),
        ("config.process.0.type", "custom.module"),
        ("config.process.0.device", "cuda:0; rm"),
        ("config.process.0.train.steps", 0),
        ("config.process.0.train.steps", 10**9),
        ("config.process.0.train.steps", True),
        ("config.process.0.datasets", []),
        ("config.process.0.model", {}),
        ("config.process.0.model.name_or_path", "someone/else"),
        ("config.process.0.save", "x"),
        ("config.process.0.hf_token", "hf_abcdefgh"),
        ("config.process.0.train.lr", float("inf")),
        ("extension", "x"),
    ],
)
def test_what_a_configuration_may_not_have_is_named(data: Workspace, place: str, value: Any) -> None:
    with pytest.raises((InvalidConfig, InvalidArgument)) as caught:
        check_training_config(changed(place, value), data, SETTINGS)
    assert caught.value.details["code"] in ("invalid_training_config", "invalid_name")
    assert "hf_abcdefgh" not in caught.value.message


@pytest.mark.parametrize(
    "place, value",
    [
        ("config.process.0.datasets.0.folder_path", "../../etc"),
        ("config.process.0.datasets.0.folder_path", "/etc"),
        ("config.process.0.datasets.0.mask_path", "/etc"),
        ("config.process.0.datasets.0.control_path", ["/etc", "/usr"]),
        ("config.process.0.logging", {"log_dir": "/etc"}),
        ("config.process.0.sample.prompts", ["/etc/passwd"]),
        ("config.process.0.model.name_or_path", "/etc/passwd"),
        ("config.process.0.model.lora_path", "../../secret"),
        ("config.process.0.network.pretrained_path", "~/secret"),
        ("config.log_dir", "/etc"),
    ],
)
def test_a_path_outside_the_workspace_is_refused(data: Workspace, place: str, value: Any) -> None:
    with pytest.raises((AccessDenied, MissingFile, InvalidConfig)) as caught:
        check_training_config(changed(place, value), data, SETTINGS)
    assert str(data.root) not in caught.value.message


def test_a_missing_data_set_is_named(data: Workspace) -> None:
    with pytest.raises(MissingFile, match="'dogs'"):
        check_training_config(changed("config.process.0.datasets.0.folder_path", "dogs"), data, SETTINGS)


def test_a_model_may_be_a_file_of_the_workspace(data: Workspace) -> None:
    found = check_training_config(changed("config.process.0.model.name_or_path", "models/base.safetensors"), data, SETTINGS)
    assert found["config"]["process"][0]["model"]["name_or_path"] == str((data.models / "base.safetensors").resolve())


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["/etc", "..", "a", "${X}", "~", "1e-4"])
    | st.text(max_size=5)
)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["path", "a", "folder", "lr"]) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        [
            "config",
            "config.process",
            "config.process.0",
            "config.process.0.train",
            "config.process.0.extra",
            "config.process.0.datasets",
            "meta",
        ]
    ),
    values,
)
def test_any_configuration_is_accepted_or_refused_with_an_error_of_ours(data: Workspace, place: str, value: Any) -> None:
    try:
        found = check_training_config(changed(place, value), data, SETTINGS)
    except YggdrasillError:
        return
    root = str(Path(data.root).resolve())
    for text in strings(found["config"]["process"]):
        assert "${" not in text
        assert not text.startswith("/") or text.startswith(root)


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in strings(item)]
