"""Three endpoints for tests of equivalence: real processes whose blocks note what they are given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from samples.blocks import Linear
from samples.endpoints import EndpointProcess, free_port, registry_of
from samples.witnesses import WITNESS_FILE
from yggdrasill.remote import EndpointRegistry

__all__ = ["ENDPOINTS", "Fleet", "open_fleet", "pair"]

ENDPOINTS = ("forge", "attic", "cave")
_PLUGINS = ["samples.witness_plugin"]


@dataclass(frozen=True)
class Fleet:
    """``forge`` and ``attic`` have one slot each, know each other's token and fetch from each other; ``cave`` has two slots
    and fetches from nobody, so that what others hold comes to it through the caller. ``heard`` is the witnesses' file, ``model``
    a linear block's checkpoint that all three may read.
    """

    forge: EndpointProcess
    attic: EndpointProcess
    cave: EndpointProcess
    heard: Path
    model: Path

    @property
    def all(self) -> tuple[EndpointProcess, EndpointProcess, EndpointProcess]:
        """The three of them."""
        return self.forge, self.attic, self.cave

    def registry(self, default: str = "local", **graphs: object) -> EndpointRegistry:
        """A registry of the three with these placements."""
        return registry_of(*self.all, graphs=graphs, default=default)


@contextmanager
def open_fleet(folder: Path) -> Iterator[Fleet]:
    """The three while the context is open; skips where this machine starts no processes."""
    heard, models = folder / "heard.jsonl", folder / "models"
    models.mkdir()
    save_file(Linear(config={"size": 4, "seed": 11}).state_dict(), models / "linear.safetensors")
    shared = {"plugins": _PLUGINS, "roots": [str(models)]}
    started = (*pair(folder, "forge", "attic", **shared), EndpointProcess("cave", folder / "cave", slots=2, **shared))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(WITNESS_FILE, str(heard))
            for endpoint in started:
                _begin(endpoint)
            for endpoint in started:
                endpoint.ready()
        yield Fleet(*started, heard, models / "linear.safetensors")
    finally:
        for endpoint in started:
            endpoint.stop()


def pair(folder: Path, one: str, other: str, **settings: Any) -> tuple[EndpointProcess, EndpointProcess]:
    """Two endpoints of one slot, not started yet, that may call and fetch from each other."""
    ports = {one: free_port(), other: free_port()}
    made = tuple(EndpointProcess(name, folder / name, port=port, **{"plugins": _PLUGINS, **settings}) for name, port in ports.items())
    for endpoint, name in zip(made, (other, one), strict=True):
        endpoint.data_dir.mkdir()
        known = EndpointRegistry()
        known.add(name, f"http://127.0.0.1:{ports[name]}", token=endpoint.token)
        known.to_yaml(endpoint.data_dir / "endpoints.yaml")
    return made[0], made[1]


def _begin(endpoint: EndpointProcess) -> None:
    try:
        endpoint.begin()
    except OSError as error:
        pytest.skip(f"NOTHING ABOUT ENDPOINTS IS SHOWN HERE: this machine starts no processes ({error})")
