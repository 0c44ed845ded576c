"""``yggdrasill demo``: the canonical world over three endpoint processes and once in this one, compared bit for bit."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yggdrasill.cli.console import Console, table
from yggdrasill.cli.processes import EndpointProcess, endpoint_processes
from yggdrasill.cli.worlds import save_passes
from yggdrasill.draw import Span, draw_config, draw_timeline
from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation.templates import render_template
from yggdrasill.stage import State
from yggdrasill.values import dumps, load_handles
from yggdrasill.values.files import FileSet
from yggdrasill.world import World

__all__ = ["StageRun", "add", "compare", "main", "same_state"]

#: The smallest and largest width of a map in pixels.
SIZES = (32, 2048)

#: Which endpoint runs which graph of the world: texts, terrain, and the chronicle.
PLACES = {
    "philosopher/philosopher/philosopher": "letters",
    "author/author/author": "letters",
    "architect/architect/architect": "letters",
    "creator/creator/creator": "forge",
    "environment/world_update/world_update": "archive",
    "environment/development_of_the_world/development": "archive",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--out", default="out", metavar="DIR", help="the folder to write pictures, chronicle and timeline to (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="passes of the world (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, metavar="PIXELS", help="the width of the maps in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="the random seed (default: %(default)s)")
    parser.add_argument("--action", metavar="TEXT", help="what the user does at the start of the first pass")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Return exit code 0 if both runs are equal in every bit, 1 if not."""
    from yggdrasill.remote import EndpointRegistry, observe_calls

    if arguments.steps < 0:
        raise InvalidArgument(f"--steps must be an integer of at least 0, got {arguments.steps}")
    if not SIZES[0] <= arguments.size <= SIZES[1]:
        raise InvalidArgument(f"--size must be {SIZES[0]} to {SIZES[1]} pixels, got {arguments.size}")
    out = Path(arguments.out)
    config = render_template("world", "canon_2.0", {"size": arguments.size, "seed": arguments.seed})
    names = sorted(set(PLACES.values()))
    calls: list[Any] = []
    with (
        console.progress(2 * arguments.steps * len(config["cycle"]), "demo") as bar,
        endpoint_processes(names, out / "endpoints") as endpoints,
    ):
        registry = EndpointRegistry.from_dict(_registry(endpoints))
        registry.to_yaml(out / "endpoints.yaml")
        placed = World.from_config(config, endpoints=registry)
        with observe_calls(calls.append):
            remote_runs, passes = _run(placed, arguments, bar)
        local_runs, _ = _run(World.from_config(config), arguments, bar)
        rows = compare(remote_runs, local_runs, calls)
    equal = all(row["equal"] for row in rows)
    _report(rows, equal, console)
    files = [*save_passes(placed, passes, out), *_pictures(config, remote_runs, calls, out)]
    console.say("\n".join(f"wrote {file}" for file in files))
    console.result({"equal": equal, "stages": rows, "files": [str(file) for file in files]})
    return 0 if equal else 1


# -- comparing two runs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageRun:
    """One stage of one pass: whether it ran, when (seconds of one clock), and the state after it."""

    stage_id: str
    pass_index: int
    ran: bool
    start: float
    end: float
    after: State

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return self.end - self.start


def compare(placed: Sequence[StageRun], local: Sequence[StageRun], calls: Iterable[Any]) -> list[dict[str, Any]]:
    """Return a row per stage and pass: pass (from 1), stage, place, ran, local_s, remote_s, bytes_moved, equal.

    ``equal`` is whether both ran or both were skipped, and every block, field and the content have the same bytes in the
    codec, which keeps every bit of every value.
    """
    every = list(calls)
    rows = []
    for remote_run, local_run in zip(placed, local, strict=True):
        calls_of_stage = [call for call in every if remote_run.start <= call.started <= remote_run.end]
        rows.append(
            {
                "pass": remote_run.pass_index + 1,
                "stage": remote_run.stage_id,
                "place": ", ".join(sorted({call.endpoint for call in calls_of_stage})) or "local",
                "ran": remote_run.ran,
                "local_s": local_run.seconds,
                "remote_s": remote_run.seconds,
                "bytes_moved": sum(call.bytes_moved for call in calls_of_stage),
                "equal": (remote_run.stage_id, remote_run.ran) == (local_run.stage_id, local_run.ran)
                and same_state(remote_run.after, local_run.after),
            }
        )
    return rows


def same_state(one: State, other: State) -> bool:
    """Return whether two states are equal in every bit; values that are still at an endpoint are fetched."""
    return dumps(load_handles(one.to_dict())) == dumps(load_handles(other.to_dict()))


# -- running and reporting --------------------------------------------------------------------------------------


def _registry(endpoints: list[EndpointProcess]) -> dict[str, Any]:
    return {"endpoints": {e.name: {"url": e.url, "token_env": e.token_env} for e in endpoints}, "graphs": PLACES, "default": "local"}


def _run(world: World, arguments: argparse.Namespace, bar: Any) -> tuple[list[StageRun], list[State]]:
    """Run the world; return when each stage ran with the state after it, and the states of the passes."""
    runs: list[StageRun] = []
    began: dict[str, float] = {}

    def note(stage_id: str, phase: str, **facts: Any) -> None:
        now = time.perf_counter()
        before: State = facts["state_before"]
        if phase == "before":
            began[stage_id] = now
        elif phase in ("after", "skipped"):
            after = facts.get("state_after", before)
            runs.append(
                StageRun(stage_id, before.passes, phase == "after", began.get(stage_id, now) if phase == "after" else now, now, after)
            )
            bar.update()

    passes = list(world.run(num_steps=arguments.steps, action=arguments.action, seed=arguments.seed, callbacks=note, iterate=True))
    return runs, passes


def _report(rows: list[dict[str, Any]], equal: bool, console: Console) -> None:
    headings = ["pass", "stage", "place", "", "local", "remote", "moved", "equal"]
    console.say(
        table(
            headings,
            [
                [
                    row["pass"],
                    row["stage"],
                    row["place"],
                    "run" if row["ran"] else "skipped",
                    f"{row['local_s'] * 1000:.0f} ms" if row["ran"] else "-",
                    f"{row['remote_s'] * 1000:.0f} ms" if row["ran"] else "-",
                    _bytes(row["bytes_moved"]) if row["ran"] else "-",
                    "yes" if row["equal"] else "NO",
                ]
                for row in rows
            ],
        )
    )
    console.say("every state block is equal, bit for bit" if equal else "the two runs DIFFER")


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _pictures(config: dict[str, Any], runs: list[StageRun], calls: list[Any], out: Path) -> list[Path]:
    """Draw the world with its places, and the timeline of the placed run."""
    spans = [Span(*span) for call in calls for span in call.spans()]
    spans += [Span("skipped", run.stage_id, "skipped", run.start, run.end, run.pass_index) for run in runs if not run.ran]
    drawings = {
        "world.svg": draw_config(config, places=dict(PLACES), title="The world of the demo and where its graphs run"),
        "timeline.svg": draw_timeline(spans, title="The placed run"),
    }
    with FileSet() as files:
        for name, svg in drawings.items():
            files.write(out / name, svg.encode("utf-8"))
    return [out / name for name in drawings]
