"""A ComfyUI without the extension whose nodes are simple: the routes that an editor uses, one prompt at a time, on threads of this process.

Its nodes: ``Picture`` saves a PNG file, ``Load`` reads an input file and saves it again, ``Files`` saves files of given names, ``Text`` shows a
text, ``Steps`` reports progress with previews and waits until its ``gate`` file exists, ``Broken`` raises an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

__all__ = ["PNG", "PREVIEW", "PlainComfy", "plain_comfys"]

PNG = b"\x89PNG\r\n\x1a\n"
PREVIEW = b"\xff\xd8picture of a step\xff\xd9"
SECRET_PATH = "/usr/lib/comfy/custom_nodes/broken.py"
#: Classes with the inputs that they need.
CLASSES: dict[str, tuple[str, ...]] = {
    "Picture": ("color",), "Load": ("image",), "Files": ("names",), "Text": ("text",), "Steps": ("gate",), "Broken": ("message",),
}  # fmt: skip


class _Interrupted(Exception):
    """The prompt was interrupted."""


class PlainComfy:
    """One server; ``name``, ``url`` and ``token`` are those that a gateway needs. ``uploads`` are the names of the files that it received."""

    token = "no-token-is-needed-here"

    def __init__(self, name: str, folder: Path, lacks: tuple[str, ...] = ()) -> None:
        self.name, self.folder, self.url = name, folder, ""
        self.uploads: list[str] = []
        self.prompts: list[dict[str, Any]] = []
        self._classes = {known: needed for known, needed in CLASSES.items() if known not in lacks}
        self._pending: list[dict[str, Any]] = []
        self._running: dict[str, Any] | None = None
        self._interrupt = ""
        self._history: dict[str, Any] = {}
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._wake = asyncio.Event()
        for kind in ("input", "output", "temp"):
            (folder / kind).mkdir(parents=True)

    # -- routes -------------------------------------------------------------------------------------------------

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.add_routes(
            [
                web.get("/ws", self.ws), web.get("/queue", self.queue), web.get("/history/{id}", self.history), web.get("/view", self.view),
                web.get("/object_info/{name}", self.object_info), web.post("/prompt", self.prompt), web.post("/queue", self.delete),
                web.post("/interrupt", self.interrupt), web.post("/upload/image", self.upload),
            ]
        )  # fmt: skip
        return app

    async def ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets[request.query["clientId"]] = socket
        async for _ in socket:
            pass
        return socket

    async def queue(self, request: web.Request) -> web.Response:
        running = [[0, self._running["prompt_id"]]] if self._running else []
        return web.json_response({"queue_running": running, "queue_pending": [[0, item["prompt_id"]] for item in self._pending]})

    async def history(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        return web.json_response({name: self._history[name]} if name in self._history else {})

    async def object_info(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response({name: {"input": {"required": {}}}} if name in self._classes else {})

    async def view(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        path = self.folder / query.get("type", "output") / query.get("subfolder", "") / query["filename"]
        if ".." in str(path):
            return web.Response(status=403)
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    async def upload(self, request: web.Request) -> web.Response:
        posted = await request.post()
        image = posted["image"]
        assert isinstance(image, web.FileField)
        data = image.file.read()
        (self.folder / "input" / image.filename).write_bytes(data)
        self.uploads.append(image.filename)
        return web.json_response({"name": image.filename, "subfolder": "", "type": "input"})

    async def prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        errors = {node_id: found for node_id, node in body["prompt"].items() if (found := self._mistakes(node))}
        if errors:
            overall = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation", "details": ""}
            return web.json_response({"error": overall, "node_errors": errors}, status=400)
        self.prompts.append(body)
        self._pending.append(body)
        self._wake.set()
        return web.json_response({"prompt_id": body["prompt_id"], "number": 1, "node_errors": {}})

    def _mistakes(self, node: Mapping[str, Any]) -> dict[str, Any] | None:
        lacking = [name for name in self._classes[node["class_type"]] if name not in node["inputs"]]
        errors = [{"type": "required_input_missing", "message": "Required input is missing", "details": name} for name in lacking]
        if node["class_type"] == "Load" and not lacking and not (self.folder / "input" / str(node["inputs"]["image"])).is_file():
            errors = [{"type": "custom_validation_failed", "message": "Invalid image file", "details": str(node["inputs"]["image"])}]
        return {"errors": errors, "class_type": node["class_type"]} if errors else None

    async def delete(self, request: web.Request) -> web.Response:
        ids = (await request.json())["delete"]
        self._pending = [item for item in self._pending if item["prompt_id"] not in ids]
        return web.Response()

    async def interrupt(self, request: web.Request) -> web.Response:
        self._interrupt = (await request.json())["prompt_id"]
        return web.Response()

    # -- running ------------------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Run the queued prompts."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                self._running = self._pending.pop(0)
                await self._run(self._running)
                self._running = None

    async def _run(self, body: Mapping[str, Any]) -> None:
        prompt_id, outputs, messages = body["prompt_id"], {}, []
        await self._send(body, "execution_start", {})
        await self._send(body, "execution_cached", {"nodes": []})
        node_id, node = "", {"class_type": ""}
        try:
            for node_id, node in body["prompt"].items():
                await self._send(body, "executing", {"node": node_id, "display_node": node_id})
                shown = await self._execute(body, node_id, node["class_type"], node["inputs"])
                if shown:
                    outputs[node_id] = shown
                    await self._send(body, "executed", {"node": node_id, "display_node": node_id, "output": shown})
        except _Interrupted:
            messages = [["execution_interrupted", {"node_id": node_id, "node_type": node["class_type"]}]]
        except RuntimeError as error:
            facts = {"exception_message": str(error), "exception_type": "RuntimeError", "traceback": [SECRET_PATH]}
            messages = [["execution_error", {"node_id": node_id, "node_type": node["class_type"], **facts}]]
        self._history[prompt_id] = {"outputs": outputs, "status": {"messages": messages}}
        await self._send(body, "executing", {"node": None})

    async def _send(self, body: Mapping[str, Any], kind: str, data: Mapping[str, Any]) -> None:
        # a client that has gone reads the history when it is back
        with contextlib.suppress(ConnectionError):
            await self._sockets[body["client_id"]].send_json({"type": kind, "data": {"prompt_id": body["prompt_id"], **data}})

    async def _execute(self, body: Mapping[str, Any], node_id: str, kind: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if kind == "Picture":
            return {"images": [self._saved(f"picture_{inputs['color']}.png", PNG + str(inputs["color"]).encode() + self.name.encode())]}
        if kind == "Load":
            data = (self.folder / "input" / inputs["image"]).read_bytes()
            return {"images": [self._saved("loaded.png", data)]}
        if kind == "Files":
            lost = [{"filename": "never.png", "subfolder": "", "type": "output"}]
            return {"files": [self._saved(name, name.encode()) for name in inputs["names"]], "lost": lost}
        if kind == "Text":
            return {"text": [inputs["text"]]}
        if kind == "Broken":
            raise RuntimeError(f"{inputs['message']} in {SECRET_PATH}")
        return await self._steps(body, node_id, Path(inputs["gate"]))

    async def _steps(self, body: Mapping[str, Any], node_id: str, gate: Path) -> dict[str, Any]:
        step = 0
        while not gate.exists():  # noqa: ASYNC240 - a local file of a test
            if self._interrupt == body["prompt_id"]:
                gate.with_suffix(".interrupted").touch()
                raise _Interrupted
            step = step % 10 + 1
            await self._send(body, "progress", {"node": node_id, "value": step, "max": 10})
            with contextlib.suppress(ConnectionError):
                await self._sockets[body["client_id"]].send_bytes(struct.pack(">II", 1, 1) + PREVIEW)
            await asyncio.sleep(0.05)
        return {}

    def _saved(self, name: str, data: bytes) -> dict[str, str]:
        (self.folder / "output" / name).write_bytes(data)
        return {"filename": name, "subfolder": "", "type": "output"}


@contextlib.contextmanager
def plain_comfys(*servers: PlainComfy) -> Iterator[None]:
    """Run servers while the block runs."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def serve() -> None:
        runners, working = [], []
        for server in servers:
            runner = web.AppRunner(server.app(), shutdown_timeout=0.1)
            runners.append(runner)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            working.append(asyncio.create_task(server.work()))
        ready.set()
        try:
            await asyncio.gather(*working)
        finally:
            for runner in runners:
                await runner.cleanup()

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(main)
        loop.close()

    main = loop.create_task(serve())
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(main.cancel)
        thread.join(30)
