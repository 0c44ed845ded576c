"""Training configurations of a client, in the form of ai-toolkit: what they may contain, and what the worker sets in them."""

from __future__ import annotations

import copy
import fnmatch
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from yggdrasill.errors import InvalidConfig, MissingFile, YggdrasillError, error_context, format_options
from yggdrasill.worker.settings import TrainingSettings
from yggdrasill.worker.workspace import Workspace, plain_name

__all__ = ["check_training_config", "read_training_yaml", "training_config"]

_CODE = "invalid_training_config"
_MAX_TEXT = 256 << 10
_MAX_DEPTH = 24
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
_DEVICE = re.compile(r"cuda(:\d{1,2})?|cpu|mps")
_SECRET_KEY = re.compile(r"(^|_)(token|secret|password|passwd|api_?key|credentials?)(_|$)", re.IGNORECASE)
_PATH_KEY = re.compile(r"(^|_)(path|paths|folder|folders|dir|dirs|file|files|directory)$", re.IGNORECASE)
_MODEL_KEYS = frozenset({"name_or_path", "name_or_path_original", "assistant_lora_path", "lora_path", "vae_path", "te_name_or_path",
                         "unet_path", "extras_name_or_path", "accuracy_recovery_adapter"})  # fmt: skip
_NUMERIC = frozenset({"lr", "unet_lr", "text_encoder_lr", "embedding_lr", "adapter_lr", "refiner_lr", "weight_decay", "eps", "max_grad_norm",
                      "linear", "linear_alpha", "conv", "conv_alpha", "steps", "batch_size", "ema_decay"})  # fmt: skip
_HUB = frozenset({"push_to_hub", "hf_repo_id", "hf_private", "hub_repo_id"})


def read_training_yaml(text: object) -> dict[str, Any]:
    """Return the mapping in a client's YAML.

    Raises:
        InvalidConfig: not YAML, not a mapping, too large, ``${`` or an alias in it (code ``invalid_training_config``).
    """
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        raise _invalid(f"It must be YAML text of at most {_MAX_TEXT} characters.")
    if "${" in text:
        raise _environment()
    try:
        _check_events(text)
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        raise _invalid(f"It is not YAML{'' if where is None else f' (line {where.line + 1}, column {where.column + 1})'}.") from None
    if not isinstance(found, dict):
        raise _invalid("It must be a mapping with the keys 'job' and 'config'.")
    return found


def _check_events(text: str) -> None:
    """Refuse aliases, which can make a small text large, and deep nesting, which takes long to read."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _invalid("Aliases ('*name') are not allowed. Write the values out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise _too_deep()


def training_config(request: Mapping[str, Any], settings: TrainingSettings) -> dict[str, Any]:
    """Return the configuration that the fields of a ``train`` request describe, to be checked as a client's."""
    rank = request["rank"]
    process: dict[str, Any] = {
        "type": settings.trainers[0],
        "device": "cuda:0",
        "network": {"type": "lora", "linear": rank, "linear_alpha": request["alpha"] or rank},
        "save": {"dtype": "float16", "save_every": request["save_every"], "max_step_saves_to_keep": 4},
        "datasets": [
            {
                "folder_path": request["dataset"],
                "caption_ext": "txt",
                "caption_dropout_rate": request["caption_dropout"],
                "resolution": request["resolution"],
                "cache_latents_to_disk": True,
            }
        ],
        "train": {
            "batch_size": request["batch_size"],
            "steps": request["steps"],
            "gradient_accumulation_steps": 1,
            "train_unet": True,
            "train_text_encoder": False,
            "gradient_checkpointing": True,
            "noise_scheduler": request["noise_scheduler"],
            "optimizer": request["optimizer"],
            "lr": request["lr"],
            "dtype": "bf16",
        },
        "model": {
            "name_or_path": request["model"],
            **({"arch": request["arch"]} if request["arch"] else {}),
            "quantize": request["quantize"],
        },
    }
    if request["trigger_word"]:
        process["trigger_word"] = request["trigger_word"]
    if request["sample_prompts"]:
        process["sample"] = {"sample_every": request["save_every"], "prompts": request["sample_prompts"], "seed": request["seed"]}
    return {"job": settings.jobs[0], "config": {"name": request["name"], "process": [process]}}


def check_training_config(config: Mapping[str, Any], workspace: Workspace, settings: TrainingSettings) -> dict[str, Any]:
    """Return a copy of a configuration with which a trainer can be started.

    Jobs, trainers and models are those that the settings allow; every path is absolute and inside the workspace; nothing is pushed to a hub;
    numbers written as text, such as ``1e-4``, are numbers. ``training_folder`` is left out, the worker sets it.

    Raises:
        InvalidConfig (code ``invalid_training_config``), InvalidArgument, AccessDenied: a path outside. MissingFile: a missing data set.
    """
    found = copy.deepcopy(dict(config))
    _check_values(found)
    inner = found.get("config")
    if not isinstance(inner, dict):
        raise _invalid("The key 'config' must be a mapping with 'name' and 'process'.")
    _one_of(found.get("job"), settings.jobs, "job")
    with _as_config("config.name"):
        plain_name(inner.get("name"), "name")
    processes = inner.get("process")
    if not isinstance(processes, list) or not processes or not all(isinstance(process, dict) for process in processes):
        raise _invalid("'config.process' must be a list with at least one mapping.")
    for number, process in enumerate(processes):
        _check_process(process, f"config.process[{number}]", workspace, settings)
    _bound_paths({key: value for key, value in inner.items() if key not in ("name", "process")}, "config", workspace, settings)
    for key in set(found) - {"job", "config", "meta"}:
        raise _invalid(f"Unknown key {str(key)[:60]!r}. Available: 'config', 'job', 'meta'.")
    return found


def _check_process(process: dict[str, Any], where: str, workspace: Workspace, settings: TrainingSettings) -> None:
    _one_of(process.get("type"), settings.trainers, f"{where}.type")
    device = process.setdefault("device", "cuda:0")
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise _invalid(f"{where}.device must be 'cuda:0', 'cpu' or 'mps'.")
    process.pop("training_folder", None)
    train = process.get("train")
    if not isinstance(train, dict):
        raise _invalid(f"{where}.train must be a mapping.")
    steps = train.get("steps")
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= settings.max_steps:
        raise _invalid(f"{where}.train.steps must be a whole number from 1 to {settings.max_steps}.")
    datasets = process.get("datasets")
    if not isinstance(datasets, list) or not datasets or not all(isinstance(each, dict) and each.get("folder_path") for each in datasets):
        raise _invalid(f"{where}.datasets must be a list of mappings with 'folder_path'.")
    model = process.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("name_or_path"), str):
        raise _invalid(f"{where}.model must be a mapping with 'name_or_path'.")
    save = process.setdefault("save", {})
    if not isinstance(save, dict):
        raise _invalid(f"{where}.save must be a mapping.")
    _bound_paths(process, where, workspace, settings)
    for mapping in _mappings(process):
        for key in _HUB & mapping.keys():
            del mapping[key]
    process["save"]["push_to_hub"] = False


def _check_values(value: Any, depth: int = 0, where: str = "") -> None:
    """Refuse ``${``, secrets and odd types everywhere, and turn numbers written as text into numbers, in place."""
    if depth > _MAX_DEPTH:
        raise _too_deep()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        place = f"{where}.{key}" if where else str(key)
        if isinstance(value, dict):
            if not isinstance(key, str) or "${" in key:
                raise _environment() if isinstance(key, str) else _invalid(f"The key {key!r} must be text.")
            if _SECRET_KEY.search(key) and item not in (None, False, ""):
                raise _invalid(f"{place} looks like a secret. Secrets come from the worker's environment only.")
        if isinstance(item, (dict, list)):
            _check_values(item, depth + 1, place)
        elif isinstance(item, str):
            if "${" in item:
                raise _environment()
            if _EXPONENT.fullmatch(item) or (key in _NUMERIC and _NUMBER.fullmatch(item)):
                value[key] = int(item) if item.lstrip("+-").isdecimal() else float(item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise _invalid(f"{place} must be a finite number.")
        elif item is not None and not isinstance(item, (bool, int, float)):
            raise _invalid(f"{place} must be text, a number, a list or a mapping, got a {type(item).__name__}.")


def _bound_paths(value: Any, where: str, workspace: Workspace, settings: TrainingSettings) -> None:
    """Replace every path by the absolute one inside the workspace, and refuse models that are not allowed."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    for key, item in items:
        place = f"{where}.{key}" if isinstance(key, str) else f"{where}[{key}]"
        if isinstance(item, (dict, list)):
            is_paths = isinstance(item, list) and isinstance(key, str) and _PATH_KEY.search(key)
            if is_paths and all(isinstance(each, str) for each in item):
                value[key] = [_inside(each, place, workspace) for each in item]
            else:
                _bound_paths(item, place, workspace, settings)
        elif isinstance(item, str) and item:
            if key in _MODEL_KEYS:
                value[key] = _model(item, place, workspace, settings)
            elif (isinstance(key, str) and _PATH_KEY.search(key)) or _looks_like_a_path(item):
                value[key] = _inside(item, place, workspace)


def _looks_like_a_path(text: str) -> bool:
    parts = text.replace("\\", "/").split("/")
    return text.startswith(("/", "~", "\\")) or ".." in parts or bool(re.match(r"[A-Za-z]:[\\/]", text))


def _inside(text: str, where: str, workspace: Workspace) -> str:
    with _as_config(where):
        try:
            return str(workspace.resolve(text))
        except MissingFile:
            return str(workspace.resolve(text, below="training_data"))


def _model(text: str, where: str, workspace: Workspace, settings: TrainingSettings) -> str:
    if not _looks_like_a_path(text) and any(fnmatch.fnmatchcase(text, pattern) for pattern in settings.models):
        return text
    try:
        path: Path = workspace.resolve(text)
    except MissingFile:
        raise _invalid(
            f"{where}: model {text[:120]!r} is neither allowed nor a file of the workspace. Available: {format_options(settings.models)}. "
            "TRAIN_MODELS changes the list."
        ) from None
    return str(path)


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _mappings(item)


def _one_of(value: object, allowed: tuple[str, ...], where: str) -> None:
    if value not in allowed:
        raise _invalid(f"{where} must be an allowed name, got {str(value)[:60]!r}. Available: {format_options(allowed)}.")


def _as_config(where: str) -> Any:
    return error_context(f"training configuration: {where}")


def _too_deep() -> YggdrasillError:
    return _invalid(f"It is nested more than {_MAX_DEPTH} levels deep.")


def _environment() -> YggdrasillError:
    return _invalid("'${' is not allowed: a trainer would replace it by a variable of the worker's environment. Write the value out.")


def _invalid(message: str) -> InvalidConfig:
    return InvalidConfig(f"Invalid training configuration. {message}", code=_CODE)
