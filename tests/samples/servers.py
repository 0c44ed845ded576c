"""Three endpoints for the equivalence tests: real processes whose blocks record their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from samples.blocks import Linear
from samples.endpoints import Cutter, EndpointProcess, free_port, registry_of
from samples.recorders import WITNESS_FILE
from yggdrasill.remote import EndpointRegistry

__all__ = ["ENDPOINTS", "Servers", "open_servers", "pair", "start_together"]

ENDPOINTS = ("forge", "attic", "cave")
_PLUGINS = ["samples.recorder_plugin"]


@dataclass(frozen=True)
class Servers:
    """Three endpoints. ``forge`` and ``attic`` have one slot each, know each other's token and fetch from each other. ``cave`` has two
    slots and no peers, so that the caller relays artifacts to it. ``attic_proxy`` is the proxy through which others fetch from
    ``attic``, ``heard`` the recorders' file, ``model`` a linear block's checkpoint that all three may read.
    """

    forge: EndpointProcess
    attic: EndpointProcess
    cave: EndpointProcess
    attic_proxy: Cutter
    heard: Path
    model: Path

    @property
    def all(self) -> tuple[EndpointProcess, EndpointProcess, EndpointProcess]:
        """The three endpoints."""
        return self.forge, self.attic, self.cave

    def registry(self, default: str = "local", **graphs: object) -> EndpointRegistry:
        """Return a registry of the three with these placements."""
        return registry_of(*self.all, graphs=graphs, default=default)


@contextmanager
def open_servers(folder: Path) -> Iterator[Servers]:
    """Start the three endpoints for the ``with`` block; skip where processes cannot be started."""
    heard, models = folder / "heard.jsonl", folder / "models"
    models.mkdir()
    save_file(Linear(config={"size": 4, "seed": 11}).state_dict(), models / "linear.safetensors")
    shared = {"plugins": _PLUGINS, "roots": [str(models)]}
    port = free_port()
    proxy = Cutter(port)
    forge, attic = pair(folder, forge={**shared, "peers": [proxy.url]}, attic={**shared, "port": port, "peer_url": proxy.url})
    cave = EndpointProcess("cave", folder / "cave", slots=2, **shared)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(WITNESS_FILE, str(heard))
            start_together(forge, attic, cave)
        yield Servers(forge, attic, cave, proxy, heard, models / "linear.safetensors")
    finally:
        for endpoint in (forge, attic, cave):
            endpoint.kill()
        proxy.close()


def pair(folder: Path, **named: Mapping[str, Any]) -> tuple[EndpointProcess, EndpointProcess]:
    """Return two endpoints with these settings, not started, with one slot each, that may call and fetch from each other."""
    settings = {name: {"port": free_port(), "plugins": _PLUGINS, **given} for name, given in named.items()}
    one, other = (EndpointProcess(name, folder / name, **given) for name, given in settings.items())
    for endpoint, known in ((one, other), (other, one)):
        endpoint.data_dir.mkdir()
        registry = EndpointRegistry()
        registry.add(known.name, f"http://127.0.0.1:{settings[known.name]['port']}", token=known.token)
        registry.to_yaml(endpoint.data_dir / "endpoints.yaml")
    return one, other


def start_together(*endpoints: EndpointProcess) -> None:
    """Start the endpoints and wait until all respond; skip where processes cannot be started."""
    for endpoint in endpoints:
        _begin(endpoint)
    for endpoint in endpoints:
        endpoint.ready()


def _begin(endpoint: EndpointProcess) -> None:
    try:
        endpoint.begin()
    except OSError as error:
        pytest.skip(f"NOTHING ABOUT ENDPOINTS IS SHOWN HERE: this machine starts no processes ({error})")
