"""The shared ComfyUI, and an endpoint without ComfyUI in its registry as ``forge``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from samples.comfy import Server
from samples.comfy_graphs import Caller, data_folder
from samples.endpoints import EndpointProcess
from yggdrasill.remote import EndpointRegistry

Place = Callable[..., None]


@pytest.fixture
def comfy(server: Server) -> Iterator[Caller]:
    """The shared ComfyUI; it must be idle when the test ends."""
    caller = Caller(server)
    yield caller
    caller.check_idle()


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointProcess]:
    """An endpoint without ComfyUI."""
    process = EndpointProcess("forge", tmp_path_factory.mktemp("forge"))
    process.begin()
    process.ready()
    yield process
    process.stop()


@pytest.fixture
def place(comfy: Caller, forge: EndpointProcess) -> Iterator[Place]:
    """``place(graph_id="forge")`` adds the endpoint and placements to the ComfyUI's registry; undone when the test ends."""
    file = data_folder(comfy.server) / "endpoints.yaml"
    before = file.read_bytes() if file.exists() else None

    def act(**graphs: Any) -> None:
        registry = EndpointRegistry()
        registry.add("forge", forge.url, token=forge.token)
        for key, placement in graphs.items():
            registry.place_key(key.replace("__", "/"), placement)
        registry.to_yaml(file)

    yield act
    if before is None:
        Path(file).unlink()
    else:
        file.write_bytes(before)
