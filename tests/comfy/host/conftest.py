"""Two ComfyUI servers that know each other and have the nodes for tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from samples.comfy import Server, Servers, make_base_directory
from samples.comfy_graphs import Caller, know

_NODES = Path(__file__).with_name("nodes_for_tests.py")


@pytest.fixture(scope="session")
def pair(servers: Servers) -> tuple[Caller, Caller]:
    """Servers ``a`` and ``b``; each knows both under these names."""
    started = []
    for name in ("a", "b"):
        base = make_base_directory(servers.folder / f"pair-{name}")
        shutil.copy(_NODES, base / "custom_nodes" / _NODES.name)
        started.append(servers.launch(("--cache-lru", "30"), base=base))
    for server in started:
        server.wait_until_ready()
    both: dict[str, Server] = dict(zip("ab", started, strict=True))
    for server in started:
        know(server, both)
    return Caller(started[0]), Caller(started[1])


@pytest.fixture
def a(pair: tuple[Caller, Caller]) -> Iterator[Caller]:
    """The first server; it is alive, idle and has nothing left over when the test ends."""
    yield pair[0]
    pair[0].check_idle()


@pytest.fixture
def b(pair: tuple[Caller, Caller]) -> Iterator[Caller]:
    """The second server, as ``a``."""
    yield pair[1]
    pair[1].check_idle()
