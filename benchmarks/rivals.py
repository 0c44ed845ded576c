"""Two other packs that transfer images from one ComfyUI to another, used as in their documentation.

NETDIST_PATH and DISTRIBUTED_PATH name checkouts of city96/ComfyUI_NetDist and robertvoy/ComfyUI-Distributed; without them
``~/comfy/rivals/<name>`` is used.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, ClassVar, Protocol

from benchmarks.comfy_client import Ended, Page
from benchmarks.comfy_servers import Server

__all__ = ["RIVALS", "Distributed", "NetDist", "Rival", "find_pack", "wait_until_idle"]

IDLE_SECONDS = 60.0


def find_pack(rival: type[Rival]) -> Path | None:
    """Return the folder of a pack's checkout, or None."""
    folder = Path(os.environ.get(rival.variable) or Path.home() / "comfy" / "rivals" / rival.name)
    return folder if (folder / "__init__.py").is_file() else None


class Rival(Protocol):
    """A transfer of a node's images from the worker to the caller; the environment ``variable`` may name its checkout."""

    name: ClassVar[str]
    variable: ClassVar[str]

    def connect(self, page: Page, worker: Server) -> None:
        """Prepare the caller, the server of ``page``."""
        ...

    def fetch(self, node: dict[str, Any], rest: dict[str, Any]) -> Ended:
        """Run ``node`` on the worker, transfer its images, and run ``rest`` on the caller, where the images are ``["images", 0]``."""
        ...


class NetDist:
    """RemoteQueueSimple and FetchRemote: the caller's own batch is one image, the worker's is complete."""

    name: ClassVar[str] = "ComfyUI_NetDist"
    variable: ClassVar[str] = "NETDIST_PATH"

    def connect(self, page: Page, worker: Server) -> None:
        self._page, self._url = page, worker.url

    def fetch(self, node: dict[str, Any], rest: dict[str, Any]) -> Ended:
        batch = node["inputs"]["batch"]
        queue = {"remote_url": self._url + "/", "batch_local": 1, "batch_remote": batch, "trigger": "always", "enabled": "true", "seed": 0}
        prompt = {
            "1": {"class_type": "RemoteQueueSimple", "inputs": queue},
            "2": {**node, "inputs": {**node["inputs"], "batch": ["1", 1]}},
            "3": {"class_type": "FetchRemote", "inputs": {"final_image": ["2", 0], "remote_info": ["1", 2]}},
        }
        return self._page.run({**prompt, **_linked(rest, "3")})


class Distributed:
    """DistributedCollector with the work delegated to one worker."""

    name: ClassVar[str] = "ComfyUI-Distributed"
    variable: ClassVar[str] = "DISTRIBUTED_PATH"

    def connect(self, page: Page, worker: Server) -> None:
        self._page, self._worker = page, worker
        facts = {"worker_id": "w1", "name": "w1", "host": "127.0.0.1", "port": worker.port, "cuda_device": 0}
        page.post("/distributed/config/update_worker", {**facts, "enabled": True, "type": "remote"})

    def fetch(self, node: dict[str, Any], rest: dict[str, Any]) -> Ended:
        collector = {"class_type": "DistributedCollector", "inputs": {"images": ["2", 0], "load_balance": False}}
        prompt = {"2": node, "3": collector, **_linked(rest, "3")}
        return self._page.run(prompt, "/distributed/queue", enabled_worker_ids=["w1"], delegate_master=True)


RIVALS: tuple[type[Rival], ...] = (NetDist, Distributed)


def _linked(rest: dict[str, Any], images: str) -> dict[str, Any]:
    return {
        node_id: {**node, "inputs": {name: [images, 0] if value == ["images", 0] else value for name, value in node["inputs"].items()}}
        for node_id, node in rest.items()
    }


def wait_until_idle(server: Server) -> None:
    """Return when a server's queue is empty: a worker may continue after its images are sent."""
    end = time.monotonic() + IDLE_SECONDS
    while time.monotonic() < end:
        queue = server.get("/queue")
        if not queue["queue_running"] and not queue["queue_pending"]:
            return
        time.sleep(0.05)
    raise TimeoutError("the worker did not become idle")
