"""Running a world from the command line: progress per stage, pictures per pass, and a chronicle as one HTML page."""

from __future__ import annotations

import argparse
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yggdrasill.cli.console import Console, table
from yggdrasill.cli.outputs import image_bytes, is_image
from yggdrasill.stage import State
from yggdrasill.values.files import FileSet
from yggdrasill.world import World

__all__ = ["chronicle_html", "pictures_of", "run_world", "save_passes"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 17px/1.55 Georgia, 'Times New Roman', serif; max-width: 46rem; margin: 3rem auto; padding: 0 1.2rem; }
h1 { font-size: 2rem; margin-bottom: .2rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; }
figure { margin: 1rem 0; } img { width: 100%; border-radius: 6px; }
.action { border-left: 3px solid #b5533c; padding-left: .8rem; font-style: italic; }
.label { font: 600 .72rem/1 system-ui, sans-serif; letter-spacing: .08em; text-transform: uppercase; opacity: .6; margin: 1.2rem 0 .3rem; }
"""


def run_world(world: World, inputs: Mapping[str, Any], arguments: argparse.Namespace, console: Console) -> int:
    """Run the passes, print which stages ran, and write pictures and chronicle to ``--out``; return the exit code."""
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
    """Return the images [height, width, channels] in block 3."""
    artifacts = state[3]
    found = list(artifacts.values()) if isinstance(artifacts, Mapping) else [artifacts]
    flat = [item for value in found for item in (value if isinstance(value, (list, tuple)) else [value])]
    return [image for value in flat if is_image(value) for image in value]


def save_passes(world: World, passes: list[State], folder: Path) -> list[Path]:
    """Write the pictures of each pass as PNG and the chronicle as HTML, and return the files; all appear, or none."""
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


# -- the chronicle ----------------------------------------------------------------------------------------------


def chronicle_html(world: World, passes: Sequence[State], pictures: Mapping[int, Sequence[str]]) -> str:
    """Return the chronicle as an HTML page: for each pass what should happen, the picture, and what really happened.

    ``pictures`` has the image files of each pass by its number, relative to the page.
    """
    content = passes[-1].content if passes and isinstance(passes[-1].content, Mapping) else {}
    title = str(content.get("title") or world.world_id)
    entries = {entry.get("episode"): entry for entry in content.get("chronicle", []) if isinstance(entry, Mapping)}
    sections = [_section(state, pictures.get(state.passes, ()), entries.get(_episode(state))) for state in passes]
    story = content.get("story") or content.get("initial_story") or world.description
    begins = bool(passes) and str(story) in _text(passes[0][1])
    opening = f"<p>{html.escape(str(story))}</p>" if story and not begins else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>{opening}\n{''.join(sections)}</body></html>\n"
    )


def _episode(state: State) -> Any:
    opening = state[1]
    return opening.get("episode", state.passes) if isinstance(opening, Mapping) else state.passes


def _section(state: State, pictures: Sequence[str], entry: Mapping[str, Any] | None) -> str:
    opening = state[1]
    heading = opening.get("title") if isinstance(opening, Mapping) else None
    parts = [f"<h2>{html.escape(str(_episode(state)))}. {html.escape(str(heading or 'Episode'))}</h2>"]
    if isinstance(opening, Mapping) and opening.get("action") and opening["action"] != heading:
        parts.append(f'<p class="action">{html.escape(str(opening["action"]))}</p>')
    parts.append(_paragraph("What should happen", opening))
    parts += [f'<figure><img src="{html.escape(name)}" alt="The map of pass {state.passes}"></figure>' for name in pictures]
    if entry is not None:
        parts.append(_paragraph("What was seen", entry.get("description")))
        parts.append(_paragraph("What happened", entry.get("account")))
    return "".join(parts) + "\n"


def _paragraph(label: str, value: Any) -> str:
    text = _text(value)
    return f'<p class="label">{label}</p><p>{html.escape(text)}</p>' if text else ""


def _text(value: Any) -> str:
    """Return the text of a block: a string, or the value of ``text`` or ``words`` in a dict."""
    text = value.get("text") or value.get("words") if isinstance(value, Mapping) else value
    return str(text) if text else ""
