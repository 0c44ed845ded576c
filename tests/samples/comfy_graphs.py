"""Workflows with ports for tests, and helpers that deploy and call them on a ComfyUI server."""

from __future__ import annotations

import contextlib
import copy
import json
import threading
import time
import urllib.error
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samples.comfy import Server
from samples.endpoints import EndpointProcess
from yggdrasill.remote import EndpointClient, EndpointRegistry
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.remote_graph import RemoteGraph

__all__ = [
    "Caller",
    "InBackground",
    "Prompt",
    "data_folder",
    "give",
    "graph_input",
    "graph_output",
    "know",
    "load_image",
    "node",
    "placed",
    "remote_node",
    "token_of",
    "until",
]

Prompt = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Return a node of an API prompt; a pair ``(id, output)`` is a link."""
    return {
        "class_type": class_type,
        "inputs": {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()},
    }


def graph_input(name: str, type: str = "*", default: Any = None) -> dict[str, Any]:  # noqa: A002 - the socket's name
    """Return a Graph Input node."""
    given = {} if default is None else {"default": default}
    return node("YggdrasillGraphInput", name=name, type=type, **given)


def graph_output(name: str, value: tuple[str, int], type: str = "*") -> dict[str, Any]:  # noqa: A002
    """Return a Graph Output node."""
    return node("YggdrasillGraphOutput", name=name, type=type, value=value)


def remote_node(graph: str, endpoint: str = "auto", *ports: tuple[str, int], **inputs: Any) -> dict[str, Any]:
    """Return a Remote Graph node whose sockets are linked in order."""
    links = {f"ports.p{index}": list(link) for index, link in enumerate(ports)}
    return {"class_type": "YggdrasillRemoteGraph", "inputs": {"graph": graph, "endpoint": endpoint, "contract": "", **links, **inputs}}


def load_image(server: Server, name: str, picture: Any) -> dict[str, Any]:
    """Write ``picture`` (uint8, [height, width, 3]) to the server's input folder, and return a LoadImage node for it."""
    from PIL import Image

    Image.fromarray(picture).save(server.base / "input" / name)
    return node("LoadImage", image=name)


def data_folder(server: Server) -> Path:
    """Return the data folder of the endpoint inside a server."""
    return server.base / "user" / "yggdrasill"


def placed(file: Path) -> dict[str, Any]:
    """Return the stored placements of all workflows by title."""
    users = json.loads(file.read_text(encoding="utf-8"))["users"] if file.exists() else {}
    parts = [part for workflows in users.values() for workflow in workflows.values() for part in workflow["parts"]]
    assert len(parts) == len({part["title"] for part in parts})
    return {part["title"]: part["placement"] for part in parts}


def token_of(server: Server) -> str:
    """Return the endpoint's token."""
    return (data_folder(server) / "token").read_text(encoding="utf-8").strip()


def know(
    server: Server, others: Mapping[str, Server], graphs: Mapping[str, Any] | None = None, blocks: EndpointProcess | None = None
) -> None:
    """Register other endpoints and placements on a server; ``blocks`` is a headless endpoint."""
    registry = EndpointRegistry()
    for name, other in others.items():
        registry.add(name, other.url, token=token_of(other))
    if blocks is not None:
        registry.add(blocks.name, blocks.url, token=blocks.token)
    for key, placement in (graphs or {}).items():
        registry.place_key(key, placement)
    registry.to_yaml(data_folder(server) / "endpoints.yaml")


def until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Return the first true result of ``what``; raise TimeoutError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise TimeoutError(f"waited {seconds} s in vain")


@dataclass
class Caller:
    """A client of the endpoint inside a server, like that of another process."""

    server: Server

    @property
    def client(self) -> EndpointClient:
        """Return a client with the endpoint's token."""
        return EndpointClient(self.server.url, token=token_of(self.server))

    def deploy(self, graph_id: str, prompt: Prompt) -> RemoteGraph:
        """Deploy a workflow and return a proxy of it."""
        config = {"kind": "comfy", "graph_id": graph_id, "prompt": copy.deepcopy(prompt)}
        loop_thread().run(self.client.deploy(graph_id, {"kind": "comfy", "config": config, "state": None}))
        return RemoteGraph(endpoint=self.client, graph_id=graph_id)

    def jobs(self, **filters: Any) -> list[dict[str, Any]]:
        """Return the rows of jobs other than deployments, newest first."""
        return [row for row in loop_thread().run(self.client.jobs(**filters)) if row["kind"] != "deploy"]

    def events(self, job_id: str) -> list[tuple[str, dict[str, Any]]]:
        """Return kind and data of every event of a finished job."""
        from yggdrasill.remote.calls import follow
        from yggdrasill.remote.retry import Retry

        async def read() -> list[tuple[str, dict[str, Any]]]:
            return [(event.kind, event.data) async for event in follow(self.client, job_id, Retry())]

        return loop_thread().run(read())

    def live_events(self, job_id: str, seconds: float = 0.3) -> list[tuple[str, dict[str, Any]]]:
        """Return the events of a job so far."""
        import asyncio

        from yggdrasill.remote.channel import read_events

        found: list[tuple[str, dict[str, Any]]] = []

        async def read() -> None:
            async with self.client.events(job_id) as response:
                async for event in read_events(response.chunks()):
                    found.append((event.kind, event.data))  # noqa: PERF401 - it is cut off in the middle

        async def some() -> None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(read(), seconds)

        loop_thread().run(some())
        return found

    def queue(self) -> tuple[list[str], list[str]]:
        """Return the ids of the running and of the queued prompts in ComfyUI."""
        found = self.server.get("/queue")
        return [item[1] for item in found["queue_running"]], [item[1] for item in found["queue_pending"]]

    def start(self, prompt: Prompt, **body: Any) -> str:
        """Queue a prompt like a ComfyUI user, and return its id."""
        return str(self.server.post("/prompt", {"prompt": prompt, **body})["prompt_id"])

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """Return the history entry of a finished prompt."""
        found: dict[str, Any] | None = self.server.get(f"/history/{prompt_id}").get(prompt_id)
        return found

    def refused(self, prompt: Prompt) -> dict[str, Any]:
        """Return ComfyUI's response to a prompt that it must refuse."""
        try:
            self.server.post("/prompt", {"prompt": prompt})
        except urllib.error.HTTPError as error:
            with error:
                found: dict[str, Any] = json.loads(error.read())
            return found
        raise AssertionError("the prompt was taken")

    def check_idle(self) -> None:
        """Check that the server is idle and that no prompt of the extension is left in its queue or history."""
        assert self.server.alive, self.server.printed()[-3000:]
        until(lambda: self.queue() == ([], []))
        entry = self.server.run(
            {"1": node("EmptyImage", width=8, height=8, batch_size=1, color=1), "2": node("PreviewImage", images=("1", 0))}
        )
        assert entry["status"]["status_str"] == "success"
        until(lambda: not any("YggdrasillResult" in json.dumps(entry["prompt"]) for entry in self.server.get("/history").values()))


def give(served: RemoteGraph, x: Any) -> Any:
    """Return the output ``y`` of a deployed graph for the input ``x``."""
    return served.run({"x": x})["y"]


class InBackground:
    """A call in a thread that stores its result or error."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._act = act
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._act()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def wait(self, seconds: float = 60.0) -> Any:
        """Return the result, or raise the error of the call."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise TimeoutError("the call has not ended")
        if self.error is not None:
            raise self.error
        return self.result
