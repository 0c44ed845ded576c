"""A gateway before two real ComfyUIs, one with the extension and one without it, both with nodes of the tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

pytest.importorskip("sqlalchemy", reason="the extra 'gateway' is not installed")

from samples.comfy import ROOT, Server, Servers, make_base_directory
from samples.comfy_graphs import token_of
from samples.gateways import GatewayProcess

_NODES = ROOT / "tests" / "samples" / "output_nodes.py"


@pytest.fixture(scope="session")
def studio(servers: Servers) -> dict[str, Server]:
    """Return the servers ``extended`` and ``plain``."""
    found = {}
    for name in ("extended", "plain"):
        base = make_base_directory(servers.folder / f"gateway-{name}", pack=name == "extended")
        shutil.copy(_NODES, base / "custom_nodes" / _NODES.name)
        found[name] = servers.launch(pack=name == "extended", base=base)
    for server in found.values():
        server.wait_until_ready()
    return found


@pytest.fixture(scope="session")
def gateway(studio: dict[str, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Return a gateway before both servers. Jobs wait in it, so that both work."""
    token = token_of(studio["extended"])
    endpoints = [SimpleNamespace(name=name, url=server.url, token=token) for name, server in studio.items()]
    process = GatewayProcess(tmp_path_factory.mktemp("gateway"), endpoints, ahead=0).start()
    try:
        yield process
    finally:
        process.stop()
