"""Endpoint processes that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from samples.endpoints import EndpointProcess
from samples.http import SECRET_VALUE, Door, Http, one_node
from samples.served_blocks import ENV_SECRET


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EndpointProcess]]:
    """``main`` (two slots), ``holder`` (whose peer is main) and ``small`` (one slot, narrow limits), started together."""
    folder = tmp_path_factory.mktemp("endpoints")
    plugins = ["samples.served_blocks"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_SECRET, SECRET_VALUE)
        main = EndpointProcess("main", folder / "main", plugins=plugins, slots=2)
        small = EndpointProcess(
            "small", folder / "small", plugins=plugins, slots=1, max_queue=3, max_body_bytes=1 << 16, max_artifact_bytes=24 << 20, grace=0.5
        )
        for process in (main, small):
            process.begin()
        main.ready()
        holder = EndpointProcess("holder", folder / "holder", plugins=plugins, peers=[main.url])
        holder.begin()
        started = {process.name: process.ready() for process in (small, holder)}
    try:
        yield {"main": main, **started}
    finally:
        for process in (main, *started.values()):
            process.stop()


@pytest.fixture(scope="session")
def server(processes: dict[str, EndpointProcess]) -> Http:
    """The endpoint with two slots and one of each graph."""
    http = Http(processes["main"])
    for name in ("double", "noise", "fail", "say", "leak"):
        http.deploy(name, one_node(name, inputs=() if name == "noise" else ("x",), outputs=("noise",) if name == "noise" else ("y",)))
    for name in ("gate", "keeper", "outside"):
        http.deploy(name, one_node(name, ("path", "x")))
    return http


@pytest.fixture(scope="session")
def holder(processes: dict[str, EndpointProcess]) -> Http:
    """An endpoint that may fetch from ``server``."""
    http = Http(processes["holder"])
    http.deploy("double", one_node("double"))
    return http


@pytest.fixture(scope="session")
def small(processes: dict[str, EndpointProcess]) -> Http:
    """An endpoint with one slot, three jobs at most, and narrow limits."""
    http = Http(processes["small"])
    http.deploy("double", one_node("double"))
    for name in ("gate", "keeper", "outside"):
        http.deploy(name, one_node(name, ("path", "x")))
    return http


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    """An endpoint that stands in for a ComfyUI."""
    folder = tmp_path_factory.mktemp("stand-in")
    process = EndpointProcess("stand-in", folder, plugins=["samples.served_blocks", "samples.prompts"], slots=4, grace=0.3).start()
    yield Http(process)
    process.stop()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """A door that is open at the end, whatever happens."""
    opened = Door(tmp_path)
    yield opened
    opened.open()
