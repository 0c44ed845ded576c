"""Runs in ComfyUI's Python: sends every sample value through the codec and reports the results as JSON.

``inside_comfyui.py REPORT_FOLDER BASE_DIRECTORY``
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
REPORT, BASE = Path(sys.argv[1]), Path(sys.argv[2])

sys.path[:0] = [str(TESTS), str(Path.cwd())]
sys.argv[1:] = ["--cpu", "--base-directory", str(BASE)]
importlib.import_module("checkout")  # binds the checkout to its name
importlib.import_module("comfy.options").enable_args_parsing()

from samples.comfy_compare import difference  # noqa: E402
from samples.comfy_values import BUILT, LIVE, ValueFactory  # noqa: E402
from yggdrasill.errors import CannotTravel, YggdrasillError  # noqa: E402
from yggdrasill.remote.comfy_ports import type_transferability  # noqa: E402
from yggdrasill.server_ext.comfy import value_classes  # noqa: E402
from yggdrasill.server_ext.comfy.port_checks import check_port  # noqa: E402
from yggdrasill.server_ext.comfy.value_classes import register_classes  # noqa: E402
from yggdrasill.values import MemoryStore, Opaque, dumps, iter_envelope, loads, pack, unpack  # noqa: E402


def transfer(value: Any, file: Path) -> dict[str, Any]:
    """Send a value both ways, and store the data for a host without ComfyUI."""
    data = dumps(value)
    back = loads(data)
    store = MemoryStore()
    with pack(value, store) as packed:
        wire = json.loads(json.dumps(packed.wire))
        other = unpack(wire, lambda ref: store.read(ref.hash))
        differs = difference(value, other)
    file.with_suffix(".bin").write_bytes(data)
    file.with_suffix(".json").write_text(json.dumps(wire), encoding="utf-8")
    return {"dumps": difference(value, back), "pack": differs, "again": dumps(back) == data and dumps(value) == data}


def one(factory: ValueFactory, file: Path, type_name: str, make: Callable[[ValueFactory], Any]) -> dict[str, Any]:
    value = make(factory)
    check_port("port", type_name, [value])
    return {
        "type": type_name,
        "class": type(value).__name__,
        "travels": type_transferability(type_name).transferable,
        **transfer(value, file),
    }


def round_trips(factory: ValueFactory) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for index, (name, (type_name, make)) in enumerate([*LIVE.items(), *BUILT.items()]):
        file = REPORT / str(index)
        try:
            with factory.torch.inference_mode():
                report[name] = {"file": file.name, **one(factory, file, type_name, make)}
        except Exception:  # noqa: BLE001 - the test that asked for this value shows it
            report[name] = {"error": traceback.format_exc()}
    return report


def from_another_thread(factory: ValueFactory) -> str | None:
    """Inference tensors belong to one thread's mode, but transfers happen in other threads."""
    with factory.torch.inference_mode():
        value = LIVE["LATENT with mask and batch index"][1](factory)
    found: list[str | None] = ["the thread ended early"]

    def send() -> None:
        back = loads(b"".join(iter_envelope(value)))
        back["samples"].add_(0)  # a tensor that arrives can be written to
        found[0] = difference(value, back)

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    return found[0] if value["samples"].is_inference() else "no inference tensor was made"


def refusals(factory: ValueFactory) -> dict[str, str]:
    """Return the errors for values that are not transferable, each created by ComfyUI itself."""
    control: Any = importlib.import_module("comfy.controlnet").ControlBase()
    hooks: Any = importlib.import_module("comfy.hooks").HookGroup()
    patcher: Any = importlib.import_module("comfy.model_patcher").ModelPatcher(factory.torch.nn.Linear(1, 1), "cpu", "cpu")
    call, cond = factory.call, factory.conditioning
    impostor = type("MESH", (), {"__module__": "other_pack.mesh"})()
    values: dict[str, tuple[str, Any]] = {
        "NOISE": ("NOISE", call("RandomNoise", noise_seed=1)[0]),
        "SAMPLER": ("SAMPLER", call("KSamplerSelect", sampler_name="euler")[0]),
        "HOOK_KEYFRAMES": ("HOOK_KEYFRAMES", call("CreateHookKeyframe", strength_mult=1.0, start_percent=0.0)[0]),
        "MODEL": ("MODEL", patcher),
        "a sampler on *": ("*", call("KSamplerSelect", sampler_name="euler")[0]),
        "a model in a list": ("SOME_PACK_PIPE", ["a", {"deep": (1, patcher)}]),
        "control": ("CONDITIONING", [[c[0], {**c[1], "control": control}] for c in cond()]),
        "hooks": ("CONDITIONING", [[c[0], {**c[1], "hooks": hooks}] for c in cond()]),
        "gligen": ("CONDITIONING", [[c[0], {**c[1], "gligen": ("position", patcher, [])}] for c in cond()]),
        "an impostor": ("MESH", impostor),
        "inside a mesh": ("MESH", factory.api.Types.MESH(factory.noise(1, 3, 3), factory.noise(1, 1, 3), material={"shader": patcher})),
        "a sparse tensor": ("IMAGE", factory.noise(2, 2).to_sparse()),
        "a meta tensor": ("IMAGE", factory.torch.empty(2, device="meta")),
    }
    return {name: _refused("picked", type_name, value) for name, (type_name, value) in values.items()}


def _refused(port: str, type_name: str, value: Any) -> str:
    try:
        check_port(port, type_name, ["fine", value])
    except CannotTravel as error:
        return error.message
    return "NOT REFUSED"


def missing_class(factory: ValueFactory) -> dict[str, Any]:
    """A ComfyUI that lacks a class, such as an older one, forwards its values."""
    data = dumps([factory.mesh()])
    kind = value_classes._KINDS["mesh"]
    object.__setattr__(kind, "location", "comfy_api.latest:Types.NO_SUCH_CLASS")
    try:
        back = loads(data)
        return {"opaque": type(back[0]) is Opaque, "same": dumps(back) == data}
    finally:
        object.__setattr__(kind, "location", "comfy_api.latest:Types.MESH")


def hostile() -> dict[str, str]:
    """Return the error class for each invalid state."""
    states: dict[str, list[Any]] = {
        "comfy.mesh": [None, [], {1: 2}, {"__class__": 1}, {"vertices": 1}, {"__dict__": {}}],
        "comfy.clip_vision_output": [{"__getitem__": 1}, {"a b": 1}, "x"],
        "comfy.svg": [{}, [1], [[b""]], ["<svg/>"]],
        "comfy.file_3d": [[b""], [b"", 1], ["/etc/passwd", "glb"], [b"", "glb", 0]],
        "comfy.video_file": [[b"", "0", 0], ["/etc/passwd", 0, 0], [b"", 0], [b"", True, 0]],
        "comfy.video_tensors": [{"components": 1, "path": 2}, {}, 5],
        "comfy.monotone_cubic_curve": [[[1, 2]], [[0.0]], [0.0, 1.0], None],
        "comfy.nested_tensor": [{}, None],
        "torch.size": [[-1], ["a"], [1 << 64], {}],
    }
    found: dict[str, str] = {}
    for tag, candidates in states.items():
        for number, state in enumerate(candidates):
            try:
                loads(dumps(Opaque(tag, 1, state)))
                found[f"{tag} {number}"] = "ACCEPTED"
            except YggdrasillError as error:
                found[f"{tag} {number}"] = type(error).__name__
    return found


def main() -> None:
    logging.getLogger().setLevel(logging.ERROR)
    register_classes()
    register_classes()
    factory = ValueFactory(BASE)
    report = {
        "round_trips": round_trips(factory),
        "thread": from_another_thread(factory),
        "refusals": refusals(factory),
        "missing": missing_class(factory),
        "hostile": hostile(),
    }
    (REPORT / "report.json").write_text(json.dumps(report), encoding="utf-8")


main()
