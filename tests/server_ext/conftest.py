"""Endpoint processes that the tests in this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from samples.endpoints import EndpointProcess
from samples.http_client import SECRET_VALUE, GateFile, Http, one_node
from samples.served_blocks import ENV_SECRET


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EndpointProcess]]:
    """Start ``main`` (two slots), ``holder`` (with main as peer) and ``small`` (one slot, low limits)."""
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
    """Return the endpoint with two slots and a deployment of each sample graph."""
    http = Http(processes["main"])
    for name in ("double", "noise", "fail", "say", "leak"):
        http.deploy(name, one_node(name, inputs=() if name == "noise" else ("x",), outputs=("noise",) if name == "noise" else ("y",)))
    for name in ("gate", "keeper", "outside"):
        http.deploy(name, one_node(name, ("path", "x")))
    return http


@pytest.fixture(scope="session")
def holder(processes: dict[str, EndpointProcess]) -> Http:
    """Return an endpoint that may fetch artifacts from ``server``."""
    http = Http(processes["holder"])
    http.deploy("double", one_node("double"))
    return http


@pytest.fixture(scope="session")
def small(processes: dict[str, EndpointProcess]) -> Http:
    """Return an endpoint with one slot, at most three jobs, and low limits."""
    http = Http(processes["small"])
    http.deploy("double", one_node("double"))
    for name in ("gate", "keeper", "outside"):
        http.deploy(name, one_node(name, ("path", "x")))
    return http


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    """Return an endpoint with a fake ComfyUI host."""
    folder = tmp_path_factory.mktemp("fake-comfyui")
    process = EndpointProcess("fake-comfyui", folder, plugins=["samples.served_blocks", "samples.fake_comfyui"], slots=4, grace=0.3).start()
    yield Http(process)
    process.stop()


@pytest.fixture
def gate_file(tmp_path: Path) -> Iterator[GateFile]:
    """Return the gate file of this test; it is created after the test, so that no gate keeps waiting."""
    file = GateFile(tmp_path)
    yield file
    file.open()
