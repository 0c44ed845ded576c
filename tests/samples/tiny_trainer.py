"""A real trainer that is small: a process that trains a low-rank matrix by gradient descent, in ai-toolkit's form.

It reads the same configuration, prints the same progress, saves safetensors every ``save_every`` steps, and continues from the newest save.
Further keys of ``train``: ``seconds_per_step``, ``exit_code`` (end with it after the first step), ``print_env`` (print a variable).
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["toolkit"]

_RUN = '''"""Started as ai-toolkit is: python run.py CONFIG."""
import runpy, sys
sys.argv[0] = {module!r}
runpy.run_path({module!r}, run_name="__main__")
'''


def toolkit(folder: Path) -> Path:
    """Make a folder with a ``run.py`` that starts this trainer, and return it."""
    folder.mkdir()
    (folder / "run.py").write_text(_RUN.format(module=str(Path(__file__).resolve())), encoding="utf-8")
    return folder


def _save(path: Path, weights: list[float], step: int) -> None:
    data = struct.pack(f"<{len(weights)}f", *weights)
    size = len(data) // 2
    tensors = {
        "lora_unet_layer.lora_down.weight": {"dtype": "F32", "shape": [2, len(weights) // 4], "data_offsets": [0, size]},
        "lora_unet_layer.lora_up.weight": {"dtype": "F32", "shape": [len(weights) // 4, 2], "data_offsets": [size, 2 * size]},
        "__metadata__": {"step": str(step)},
    }
    header = json.dumps(tensors).encode()
    partial = path.with_suffix(".part")
    partial.write_bytes(struct.pack("<Q", len(header)) + header + data)
    partial.replace(path)


def _load(path: Path) -> tuple[list[float], int]:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    count = (len(data) - 8 - size) // 4
    return list(struct.unpack(f"<{count}f", data[8 + size :])), int(header["__metadata__"]["step"])


def _train(process: dict[str, Any], name: str) -> int:
    folder = Path(process["training_folder"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    train, every = process["train"], int(process["save"].get("save_every", 10))
    steps, lr = int(train["steps"]), float(train["lr"])
    images = [path for path in Path(process["datasets"][0]["folder_path"]).iterdir() if path.suffix != ".txt"]
    target = [((sum(images[0].read_bytes()) * (number + 1)) % 97) / 97 for number in range(16)]
    saves = sorted(folder.glob("*.safetensors"))
    weights, first = _load(saves[-1]) if saves else ([0.0] * 16, 0)
    print(f"training {name} from step {first}, environment has {len(os.environ)} variables", flush=True)
    if train.get("print_env"):
        print(f"variable: {os.environ.get(str(train['print_env']))}", flush=True)
    for step in range(first + 1, steps + 1):
        gradient = [weight - wanted for weight, wanted in zip(weights, target, strict=True)]
        loss = sum(each * each for each in gradient) / len(gradient)
        weights = [weight - lr * each for weight, each in zip(weights, gradient, strict=True)]
        print(
            f"{name}:  {100 * step // steps}%|##| {step}/{steps} [00:01<00:02, 1.00it/s, lr: {lr:.1e} loss: {loss:.3e}]",
            end="\r",
            flush=True,
        )
        if step % every == 0 or step == steps:
            _save(folder / f"{name}_{step:09}.safetensors", weights, step)
        if train.get("exit_code"):
            print("\ncannot continue", flush=True)
            return int(train["exit_code"])
        time.sleep(float(train.get("seconds_per_step", 0)))
    print("\ndone", flush=True)
    return 0


if __name__ == "__main__":
    import importlib

    document = importlib.import_module("yaml").safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.exit(_train(document["config"]["process"][0], document["config"]["name"]))
