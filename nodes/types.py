"""The types that travel between the nodes: configs of the levels and serialised states, plain values that nobody changes."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

__all__ = ["GRAPH", "MOST_SEED", "PIPELINE", "STAGE", "STATE", "WORLD", "category", "own_seed_input", "seed_input"]

GRAPH = io.Custom("YGGDRASILL_GRAPH")
PIPELINE = io.Custom("YGGDRASILL_PIPELINE")
STAGE = io.Custom("YGGDRASILL_STAGE")
WORLD = io.Custom("YGGDRASILL_WORLD")
STATE = io.Custom("YGGDRASILL_STATE")
MOST_SEED = 2**63 - 1


def category(family: str) -> str:
    """Where a family of nodes stands in the menu."""
    return f"Yggdrasill/{family}"


def seed_input(default: int = 0) -> io.Int.Input:
    """The seed of a run, with what the editor does to it after one."""
    return io.Int.Input(
        "seed",
        default=default,
        min=0,
        max=MOST_SEED,
        control_after_generate=True,
        tooltip="What chance starts from: the same seed gives the same result, wherever the parts run.",
    )


def own_seed_input() -> io.Int.Input:
    """The seed of a run whose state or world may have one of its own."""
    return io.Int.Input(
        "seed",
        default=-1,
        min=-1,
        max=MOST_SEED,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip="What chance starts from; -1 takes the state's own seed, else the world's.",
    )
