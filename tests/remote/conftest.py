"""Endpoints shared by the tests of this folder: real processes, started once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from samples.endpoints import Cutter, EndpointProcess, cutter, free_port


@dataclass(frozen=True)
class Servers:
    """``forge`` and ``attic`` may fetch from each other, ``cave`` fetches from no endpoint and accepts little, ``annex`` shares the
    folder ``shared``.
    """

    forge: EndpointProcess
    attic: EndpointProcess
    cave: EndpointProcess
    annex: EndpointProcess
    shared: Path


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("endpoints")
    shared = folder / "shared"
    port = free_port()
    forge = EndpointProcess("forge", folder / "forge", slots=2, port=port)
    attic = EndpointProcess("attic", folder / "attic", peers=[f"http://127.0.0.1:{port}"])
    cave = EndpointProcess("cave", folder / "cave", max_artifact_bytes=16 << 20, max_body_bytes=1 << 20)
    annex = EndpointProcess("annex", folder / "annex", artifacts=str(shared))
    started = [forge, attic, cave, annex]
    try:
        for endpoint in started:
            endpoint.begin()
        for endpoint in started:
            endpoint.ready()
        yield Servers(forge, attic, cave, annex, shared)
    finally:
        for endpoint in started:
            endpoint.stop()


@pytest.fixture
def forge(servers: Servers) -> EndpointProcess:
    return servers.forge


@pytest.fixture
def attic(servers: Servers) -> EndpointProcess:
    return servers.attic


@pytest.fixture
def cave(servers: Servers) -> EndpointProcess:
    return servers.cave


@pytest.fixture
def forge_proxy(forge: EndpointProcess) -> Iterator[Cutter]:
    with cutter(forge) as proxy:
        yield proxy


@pytest.fixture
def cave_proxy(cave: EndpointProcess) -> Iterator[Cutter]:
    with cutter(cave) as proxy:
        yield proxy
