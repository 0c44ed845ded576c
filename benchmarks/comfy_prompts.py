"""Shared pieces of prompts for the ComfyUI benchmarks, and the image graphs that an endpoint serves for them."""

from __future__ import annotations

import itertools
from typing import Any

from benchmarks.comfy_client import Ended
from benchmarks.comfy_servers import Server
from samples.comfy_graphs import Caller, Prompt, graph_input, graph_output, node, remote_node

__all__ = ["IMAGES", "NBYTES", "check_images", "fresh", "noise", "noise_there", "serve_images", "sink"]

BATCH, SIZE = 8, 1024
NBYTES = BATCH * SIZE * SIZE * 3 * 4
IMAGES = f"IMAGE {BATCH}x{SIZE}x{SIZE}x3"
_seeds = itertools.count(1)


def fresh() -> int:
    """Return a number that no other prompt of this run has, so that no node is cached."""
    return next(_seeds)


def noise(seed: Any, batch: int = BATCH, size: int = SIZE, low: Any = 0.0, high: Any = 1.0) -> dict[str, Any]:
    """Return a node that makes noise images."""
    return node("BenchNoise", seed=seed, batch=batch, size=size, low=low, high=high)


def sink(source: str, output: int = 0) -> dict[str, Any]:
    """Return a node that consumes output number ``output`` of node ``source``."""
    return node("BenchSink", value=(source, output), tag=fresh())


def noise_there(seed: int, low: float = 0.0, high: float = 1.0) -> Prompt:
    """Return a prompt with noise made at the endpoint, the output of node 4."""
    constants = {"1": node("PrimitiveInt", value=seed), "2": node("PrimitiveFloat", value=low), "3": node("PrimitiveFloat", value=high)}
    return {**constants, "4": remote_node("noise", "there", ("1", 0), ("2", 0), ("3", 0))}


def check_images(ended: Ended, sink: str) -> None:
    """Raise AssertionError if node ``sink`` did not receive the whole batch."""
    if ended.reported != {sink: [[BATCH, SIZE, SIZE, 3]]}:
        raise AssertionError(f"unexpected images arrived: {ended.reported}")


def serve_images(there: Server) -> None:
    """Serve ``invert`` (images in, images out) and ``noise`` (see `noise_there`)."""
    inverted = {"1": graph_input("image", "IMAGE"), "2": node("ImageInvert", image=("1", 0)), "3": graph_output("image", ("2", 0), "IMAGE")}
    ports = {"1": graph_input("seed", "INT"), "2": graph_input("low", "FLOAT"), "3": graph_input("high", "FLOAT")}
    made = {**ports, "4": noise(("1", 0), low=("2", 0), high=("3", 0)), "5": graph_output("image", ("4", 0), "IMAGE")}
    for graph_id, prompt in {"invert": inverted, "noise": made}.items():
        Caller(there).deploy(graph_id, prompt)
