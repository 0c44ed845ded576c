"""Running a world for a person: progress per stage, a picture and a chronicle per pass."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yggdrasill.cli.chronicle import chronicle_html
from yggdrasill.cli.console import Console, table
from yggdrasill.cli.outputs import image_bytes, is_image
from yggdrasill.stage import State
from yggdrasill.values.files import FileSet
from yggdrasill.world import World

__all__ = ["pictures_of", "run_world", "save_passes"]


def run_world(world: World, inputs: Mapping[str, Any], arguments: argparse.Namespace, console: Console) -> int:
    """Run the passes, print what each stage did, and write pictures and chronicle."""
    steps = 1 if arguments.steps is None else arguments.steps
    rows: list[list[object]] = []
    with console.progress(steps * len(world.cycle), world.world_id) as bar:

        def show(stage_id: str, phase: str, **facts: Any) -> None:
            if phase in ("after", "skipped"):
                rows.append([facts["state_before"].passes + 1, stage_id, "run" if phase == "after" else "skipped"])
                bar.update()

        passes = list(
            world.run(
                State.of(inputs) if inputs else None,
                action=arguments.action,
                num_steps=steps,
                seed=arguments.seed,
                callbacks=show,
                iterate=True,
            )
        )
    console.say(table(["pass", "stage", ""], rows))
    files = save_passes(world, passes, Path(arguments.out)) if arguments.out else []
    for file in files:
        console.say(f"wrote {file}")
    console.result(
        {
            "world": world.world_id,
            "passes": len(passes),
            "seed": passes[-1].seed if passes else None,
            "stages": [{"pass": row[0], "stage": row[1], "ran": row[2] == "run"} for row in rows],
            "files": [str(file) for file in files],
        }
    )
    return 0


def pictures_of(state: State) -> list[Any]:
    """The images [height, width, channels] in block 3."""
    artifacts = state[3]
    found = list(artifacts.values()) if isinstance(artifacts, Mapping) else [artifacts]
    flat = [item for value in found for item in (value if isinstance(value, (list, tuple)) else [value])]
    return [image for value in flat if is_image(value) for image in value]


def save_passes(world: World, passes: list[State], folder: Path) -> list[Path]:
    """Write each pass's pictures as PNG and the chronicle as HTML; all files appear, or none."""
    written: list[Path] = []
    with FileSet() as files:

        def write(name: str, data: bytes) -> None:
            files.write(folder / name, data)
            written.append(folder / name)

        pictures: dict[int, list[str]] = {}
        for state in passes:
            for number, image in enumerate(pictures_of(state)):
                name = f"pass-{state.passes:02d}{f'-{number}' if number else ''}.png"
                write(name, image_bytes(image))
                pictures.setdefault(state.passes, []).append(name)
        write("chronicle.html", chronicle_html(world, passes, pictures).encode("utf-8"))
    return written
