"""Every type on ComfyUI's links is either transferred bit for bit or refused with its name and its port's name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from samples.comfy import Installation, Server, make_base_directory
from samples.comfy_values import BUILT, LIVE
from yggdrasill.errors import CannotTravel
from yggdrasill.remote.comfy_ports import not_transferable, type_transferability

INSIDE = Path(__file__).resolve().parent / "inside_comfyui.py"

#: What a process that has no ComfyUI does with the bytes: opens them, and sends them on.
WITHOUT_COMFYUI = """
import json, sys
from pathlib import Path
from yggdrasill.values import MemoryStore, dumps, loads, pack
found = {}

def same(ours, theirs):
    for entry in [*ours["payloads"], *theirs["payloads"]]:
        entry.pop("store", None)  # where the bytes are, which is another store here
    return ours == theirs

for file in sorted(Path(sys.argv[1]).glob("*.bin")):
    data = file.read_bytes()
    value = loads(data)
    with pack(value, MemoryStore()) as packed:
        wire = same(json.loads(json.dumps(packed.wire)), json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
    found[file.stem] = {"type": type(value).__name__, "bytes": dumps(value) == data, "wire": wire}
print(json.dumps({"found": found, "comfy": sorted(name for name in sys.modules if name.partition(".")[0].startswith("comfy"))}))
"""


@pytest.fixture(scope="module")
def folder(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where ComfyUI's Python wrote the bytes of every sample value and its report."""
    folder = tmp_path_factory.mktemp("report")
    done = installation.run(INSIDE, str(folder), str(make_base_directory(tmp_path_factory.mktemp("base"), pack=False)))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def without_comfyui(folder: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMFYUI, str(folder)], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", [*LIVE, *BUILT])
def test_a_value_comes_back_the_same_bit_for_bit(report: dict[str, Any], name: str) -> None:
    case = report["round_trips"][name]
    assert "error" not in case, case["error"]
    assert case["travels"]
    assert (case["dumps"], case["pack"]) == (None, None)
    assert case["again"], "the same value gave other bytes the second time"


@pytest.mark.parametrize("name", [*LIVE, *BUILT])
def test_a_host_without_comfyui_forwards_the_same_bytes(report: dict[str, Any], without_comfyui: dict[str, Any], name: str) -> None:
    found = without_comfyui["found"][report["round_trips"][name]["file"]]
    assert (found["bytes"], found["wire"]) == (True, True)
    assert without_comfyui["comfy"] == []


@pytest.mark.parametrize("name", ["CLIP_VISION_OUTPUT", "CURVE", "FILE_3D_GLB", "MESH", "RANGE", "SPLAT", "SVG", "VIDEO created", "VOXEL"])
def test_a_host_without_comfyui_keeps_an_object_opaque(report: dict[str, Any], without_comfyui: dict[str, Any], name: str) -> None:
    assert without_comfyui["found"][report["round_trips"][name]["file"]]["type"] == "Opaque"


def test_inference_tensors_can_be_sent_by_another_thread(report: dict[str, Any]) -> None:
    assert report["thread"] is None


def test_a_comfyui_that_lacks_a_class_forwards_its_values(report: dict[str, Any]) -> None:
    assert report["missing"] == {"opaque": True, "same": True}


REFUSED = {
    "NOISE": "holds functions",
    "SAMPLER": "holds functions",
    "HOOK_KEYFRAMES": "holds functions",
    "MODEL": "holds weights",
    "a sampler on *": "value 1 is a comfy.samplers.KSAMPLER;",
    "a model in a list": 'value 1[1]["deep"][1] is a comfy.model_patcher.ModelPatcher;',
    "control": 'value 1[0][1]["control"] is a comfy.controlnet.ControlBase (control is a ControlNet with its weights);',
    "hooks": 'value 1[0][1]["hooks"] is a comfy.hooks.HookGroup (hooks is hooks, which change a model while it samples);',
    "gligen": 'value 1[0][1]["gligen"][1] is a comfy.model_patcher.ModelPatcher (gligen is a GLIGEN model with its weights);',
    "an impostor": "value 1 is a other_pack.mesh.MESH, which only shares its name with a class of ComfyUI;",
    "inside a mesh": 'value 1["material"]["shader"] is a comfy.model_patcher.ModelPatcher;',
    "a sparse tensor": "value 1 is a torch.Tensor of torch.sparse_coo on cpu with torch.float32, which is not plain memory;",
    "a meta tensor": "value 1 is a torch.Tensor of torch.strided on meta with torch.float32, which is not plain memory;",
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_are_not_transferable_are_refused_with_port_type_and_location(report: dict[str, Any], name: str) -> None:
    message = report["refusals"][name]
    assert re.match(r"port 'picked' \([A-Z_*]+\) cannot be transferred: ", message)
    assert REFUSED[name] in message
    assert message.endswith("let the nodes that make this value run on the side that uses it")


def test_every_refusal_is_tested(report: dict[str, Any]) -> None:
    assert report["refusals"].keys() == REFUSED.keys()


def test_invalid_states_raise_our_error(report: dict[str, Any]) -> None:
    assert report["hostile"]
    assert set(report["hostile"].values()) == {"CorruptData"}


def output_types(server: Server) -> set[str]:
    nodes = server.get("/object_info").values()
    return {type_name for node in nodes for type_name in node["output"] if isinstance(type_name, str)}


def test_the_table_has_every_output_type_of_comfyuis_own_nodes(server: Server) -> None:
    unknown = {name for name in output_types(server) if not type_transferability(name).known and not name.startswith("YGGDRASILL")}
    assert unknown <= {"*", "COMFY_MATCHTYPE_V3"}


def test_every_transferable_type_has_a_sample_value(server: Server) -> None:
    sampled = {type_name for type_name, _ in [*LIVE.values(), *BUILT.values()]}
    travelling = {name for name in output_types(server) if type_transferability(name).known and type_transferability(name).transferable}
    plain_trees = {"DA3_GEOMETRY", "IC_LORA_PARAMETERS", "POSE_KEYPOINT", "SAM3_TRACK_DATA", "FILE_3D_POINT_CLOUD_ANY"}
    assert travelling - sampled <= plain_trees


@pytest.mark.parametrize(
    "name, travels, known",
    [
        ("IMAGE", True, True),
        ("FILE_3D_NEWEST", True, True),
        ("LORA_MODEL", True, True),
        ("MODEL", False, True),
        ("INTERP_MODEL", False, True),
        ("HOOKS", False, True),
        ("*", True, False),
        ("SOME_PACKS_PIPE", True, False),
        ("INT,FLOAT", True, True),
        ("FLOAT, *", True, False),
        ("MODEL,CLIP", False, True),
        ("MODEL,IMAGE", True, False),
    ],
)
def test_the_transferability_of_a_type_by_name(name: str, travels: bool, known: bool) -> None:
    verdict = type_transferability(name)
    assert (verdict.type, verdict.transferable, verdict.known) == (name, travels, known)
    assert verdict.detail


def test_the_options_of_a_combo_are_a_combo() -> None:
    assert type_transferability(["euler", "dpmpp_2m"]) == type_transferability("COMBO")


def test_a_type_name_that_equals_everything_is_read_as_text() -> None:
    class Wild(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

    verdict = type_transferability(Wild("*"))
    assert (type(verdict.type), verdict.type, verdict.known) == (str, "*", False)


def test_a_refusal_by_type_alone_names_port_and_type() -> None:
    error = not_transferable("vae", "VAE")
    assert isinstance(error, CannotTravel)
    assert error.details == {"port": "vae", "type": "VAE"}
    assert error.message.startswith("port 'vae' (VAE) cannot be transferred: it holds weights on a device. Transferable are ")
