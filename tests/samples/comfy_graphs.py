"""Workflows with ports for tests, and what brings them to a ComfyUI server and calls them there."""

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
    "remote_node",
    "token_of",
    "until",
]

Prompt = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node of an API prompt; a pair ``(id, output)`` is a link."""
    return {
        "class_type": class_type,
        "inputs": {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()},
    }


def graph_input(name: str, type: str = "*", default: Any = None) -> dict[str, Any]:  # noqa: A002 - the socket's name
    """A Graph Input node."""
    given = {} if default is None else {"default": default}
    return node("YggdrasillGraphInput", name=name, type=type, **given)


def graph_output(name: str, value: tuple[str, int], type: str = "*") -> dict[str, Any]:  # noqa: A002
    """A Graph Output node."""
    return node("YggdrasillGraphOutput", name=name, type=type, value=value)


def remote_node(graph: str, endpoint: str = "auto", *ports: tuple[str, int], **inputs: Any) -> dict[str, Any]:
    """A Remote Graph node whose sockets are linked in order."""
    links = {f"ports.p{index}": list(link) for index, link in enumerate(ports)}
    return {"class_type": "YggdrasillRemoteGraph", "inputs": {"graph": graph, "endpoint": endpoint, "contract": "", **links, **inputs}}


def load_image(server: Server, name: str, picture: Any) -> dict[str, Any]:
    """A LoadImage node for ``picture``, an uint8 array [height, width, 3] that is written into the server's input folder."""
    from PIL import Image

    Image.fromarray(picture).save(server.base / "input" / name)
    return node("LoadImage", image=name)


def data_folder(server: Server) -> Path:
    """The data folder of the endpoint inside a server."""
    return server.base / "user" / "yggdrasill"


def token_of(server: Server) -> str:
    """The endpoint's token."""
    return (data_folder(server) / "token").read_text(encoding="utf-8").strip()


def know(
    server: Server, others: Mapping[str, Server], graphs: Mapping[str, Any] | None = None, blocks: EndpointProcess | None = None
) -> None:
    """Let a server know others by name, and where graphs run; ``blocks`` is an endpoint without ComfyUI."""
    registry = EndpointRegistry()
    for name, other in others.items():
        registry.add(name, other.url, token=token_of(other))
    if blocks is not None:
        registry.add(blocks.name, blocks.url, token=blocks.token)
    for key, placement in (graphs or {}).items():
        registry.place_key(key, placement)
    registry.to_yaml(data_folder(server) / "endpoints.yaml")


def until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true result of ``what``; raises TimeoutError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise TimeoutError(f"waited {seconds} s in vain")


@dataclass
class Caller:
    """Calls the endpoint inside a server, as another process would."""

    server: Server

    @property
    def client(self) -> EndpointClient:
        """A client with the endpoint's token."""
        return EndpointClient(self.server.url, token=token_of(self.server))

    def deploy(self, graph_id: str, prompt: Prompt) -> RemoteGraph:
        """Serve a workflow and give the proxy of it."""
        config = {"kind": "comfy", "graph_id": graph_id, "prompt": copy.deepcopy(prompt)}
        loop_thread().run(self.client.deploy(graph_id, {"kind": "comfy", "config": config, "state": None}))
        return RemoteGraph(endpoint=self.client, graph_id=graph_id)

    def jobs(self, **filters: Any) -> list[dict[str, Any]]:
        """Rows of jobs, newest first."""
        return loop_thread().run(self.client.jobs(**filters))

    def events(self, job_id: str) -> list[tuple[str, dict[str, Any]]]:
        """Kind and data of every event of a finished job."""
        from yggdrasill.remote.calls import follow
        from yggdrasill.remote.retry import Retry

        async def read() -> list[tuple[str, dict[str, Any]]]:
            return [(event.kind, event.data) async for event in follow(self.client, job_id, Retry())]

        return loop_thread().run(read())

    def live_events(self, job_id: str, seconds: float = 0.3) -> list[tuple[str, dict[str, Any]]]:
        """The events of a job so far."""
        import asyncio

        from yggdrasill.remote.calls import read_events

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
        """The ids of the prompts that run and that wait in ComfyUI."""
        found = self.server.get("/queue")
        return [item[1] for item in found["queue_running"]], [item[1] for item in found["queue_pending"]]

    def start(self, prompt: Prompt, **body: Any) -> str:
        """Queue a prompt as ComfyUI's owner would; gives its id."""
        return str(self.server.post("/prompt", {"prompt": prompt, **body})["prompt_id"])

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The history's entry of a finished prompt."""
        found: dict[str, Any] | None = self.server.get(f"/history/{prompt_id}").get(prompt_id)
        return found

    def refused(self, prompt: Prompt) -> dict[str, Any]:
        """What ComfyUI says to a prompt that it must refuse."""
        try:
            self.server.post("/prompt", {"prompt": prompt})
        except urllib.error.HTTPError as error:
            with error:
                found: dict[str, Any] = json.loads(error.read())
            return found
        raise AssertionError("the prompt was taken")

    def check_idle(self) -> None:
        """The server runs a prompt, and nothing of ours is left in its queue or history."""
        assert self.server.alive, self.server.printed()[-3000:]
        until(lambda: self.queue() == ([], []))
        entry = self.server.run(
            {"1": node("EmptyImage", width=8, height=8, batch_size=1, color=1), "2": node("PreviewImage", images=("1", 0))}
        )
        assert entry["status"]["status_str"] == "success"
        until(lambda: not any("YggdrasillResult" in json.dumps(entry["prompt"]) for entry in self.server.get("/history").values()))


def give(served: RemoteGraph, x: Any) -> Any:
    """The output ``y`` of a served graph for its input ``x``."""
    return served.run({"x": x})["y"]


class InBackground:
    """A call in a thread, its result or error kept."""

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
        """The result; raises what the call raised."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise TimeoutError("the call has not ended")
        if self.error is not None:
            raise self.error
        return self.result
