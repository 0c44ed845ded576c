"""Three servers with the models of the workflows: parts placed on ``forge`` and ``loom`` may run on either, or on the first."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from samples.comfy import Server, Servers, make_base_directory
from samples.comfy_graphs import Caller, know
from samples.shipped_workflows import PLACES, api_form

_TESTS = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Theatre:
    """The three servers; ``here`` has the editor."""

    here: Server
    forge: Server
    loom: Server

    def place(self, name: str, count: int) -> list[Caller]:
        """Place a workflow on ``count`` servers, empty the first one's cache, and return the servers of its parts."""
        forge, loom = {1: (self.here, self.here), 2: (self.forge, self.forge), 3: (self.forge, self.loom)}[count]
        alone = count == 1 and name != "remote-upscale-chain"
        know(self.here, {"forge": forge, "loom": loom}, {} if alone else PLACES[name])
        if name == "remote-upscale-chain":
            Caller(forge).deploy("enlarge", api_form("serve-this-workflow"))
            Caller(loom).deploy("refine", api_form("serve-refine"))
        self.forget()
        used = {"forge": forge, "loom": loom}
        return [] if alone else [Caller(server) for server in dict.fromkeys(used[place] for place in PLACES[name].values())]

    def forget(self) -> None:
        """Empty the first server's cache."""
        self.here.post("/free", {"free_memory": True})
        Caller(self.here).check_idle()


@pytest.fixture(scope="session")
def theatre(servers: Servers) -> Iterator[Theatre]:
    """The three servers, which load the same models."""
    bases = [make_base_directory(servers.folder / f"theatre-{name}") for name in ("here", "forge", "loom")]
    written = servers.installation.run(_TESTS / "comfy" / "checkpoint.py", str(bases[0] / "models"))
    assert written.returncode == 0, written.stderr
    for base in bases[1:]:
        shutil.copytree(bases[0] / "models", base / "models", dirs_exist_ok=True)
    for base in bases:
        shutil.copy(_TESTS / "samples" / "conformance" / "capture.py", base / "custom_nodes" / "conformance_nodes.py")
    started = [servers.launch(base=base) for base in bases]
    for server in started:
        server.wait_until_ready()
    yield Theatre(*started)
    for server in started:
        server.stop()
