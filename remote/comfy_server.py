"""Client of a plain ComfyUI server, by the routes that an editor uses: queue a prompt, follow it, fetch saved files. Needs no extension."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from yggdrasill.errors import BlockFailed, Cancelled, EndpointFailed, EndpointUnreachable, InvalidArgument, InvalidStructure

__all__ = ["ComfyServer", "SavedFile", "saved_files"]

_PATIENCE = 30.0
_PAUSE = 0.5
_MOST_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20
_SILENCE = 10.0
_PREVIEW, _PREVIEW_WITH_METADATA = 1, 4
_MEDIA_TYPES = {1: "image/jpeg", 2: "image/png"}

MessageCallback = Callable[[str, Mapping[str, Any]], None]
"""Receives kind and data of a message about the prompt."""
PreviewCallback = Callable[[str, bytes], None]
"""Receives the media type and the bytes of a preview image."""


@dataclass(frozen=True)
class SavedFile:
    """A file that an output node saved on the server."""

    node_id: str
    filename: str
    subfolder: str
    folder: str


def saved_files(outputs: Mapping[str, Any]) -> list[SavedFile]:
    """Return the files in the outputs of a prompt, in order."""
    return [
        SavedFile(node_id, str(item["filename"]), str(item.get("subfolder") or ""), str(item.get("type") or "output"))
        for node_id, output in outputs.items()
        for entries in (output.values() if isinstance(output, Mapping) else ())
        for item in (entries if isinstance(entries, list) else ())
        if isinstance(item, Mapping) and "filename" in item
    ]


class ComfyServer:
    """The ComfyUI at ``url``; ``name`` is used in messages, ``headers()`` are sent with each request. Raises `InvalidArgument` for an invalid URL."""

    def __init__(self, url: str, name: str | None = None, headers: Callable[[], Mapping[str, str]] = dict) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidArgument(f"the URL of a ComfyUI must start with http:// or https:// and name a host, got {url!r}")
        self.url = url.rstrip("/")
        self.name = name or self.url
        self._headers = headers

    async def load(self) -> int:
        """Return the number of running and queued prompts. Raise `EndpointUnreachable`."""
        found = await self._get("/queue")
        return len(found["queue_running"]) + len(found["queue_pending"])

    async def node_classes(self, classes: list[str]) -> dict[str, Any]:
        """Return the entries of /object_info for those of ``classes`` that the server has. Raise `EndpointUnreachable`."""
        answers = [await self._get(f"/object_info/{quote(name, safe='')}") for name in classes]
        return {name: entry for answer in answers for name, entry in answer.items()}

    async def run(
        self,
        prompt: Mapping[str, Any],
        extra_data: Mapping[str, Any],
        on_message: MessageCallback,
        on_preview: PreviewCallback | None = None,
        *,
        prompt_id: str | None = None,
    ) -> dict[str, Any]:
        """Queue a prompt as an editor does and return its outputs by node. Cancelling the coroutine removes it from the queue, or
        interrupts it if it is running.

        A prompt with ``prompt_id``, a UUID, that the server has in its queue or history is not queued again.

        Raises:
            InvalidStructure: the server refuses the prompt.
            BlockFailed: a node failed.
            Cancelled: the prompt was interrupted on the server.
            EndpointUnreachable
        """
        page = uuid.uuid4().hex
        async with self._session() as session, session.ws_connect(f"{self.url}/ws?clientId={page}", max_msg_size=0) as socket:
            is_known = prompt_id is not None and await self.is_known(prompt_id)
            # a server that accepts the id can be asked to withdraw the prompt before its response has arrived
            prompt_id = prompt_id or str(uuid.uuid4())
            body = {"prompt": prompt, "extra_data": extra_data, "client_id": page, "prompt_id": prompt_id}
            try:
                if not is_known:
                    facts = await self._post_prompt(session, body)
                    if "prompt_id" not in facts:
                        raise _refused(self.name, facts)
                    prompt_id = str(facts["prompt_id"])
                    await self._follow(socket, prompt_id, on_message, on_preview)
                entry = await self._entry(prompt_id)
            except asyncio.CancelledError:
                await self._withdraw(prompt_id)
                raise
        return _outputs(self.name, entry)

    async def upload(self, name: str, data: bytes | BinaryIO) -> str:
        """Store a file in the input folder, and return the name by which nodes find it. An equal file is not stored twice.

        Raises:
            EndpointUnreachable
            EndpointFailed: the server refuses it.
        """
        import aiohttp

        form = aiohttp.FormData()
        form.add_field("image", data, filename=name, content_type="application/octet-stream")
        async with self._session() as session, session.post(f"{self.url}/upload/image", data=form) as answer:
            if answer.status != 200:
                raise EndpointFailed(f"{self.name} refuses the input file {name[:80]!r} (HTTP {answer.status})", endpoint=self.name)
            stored = await self._document(answer)
        return f"{stored['subfolder']}/{stored['name']}" if stored.get("subfolder") else str(stored["name"])

    async def has_input(self, name: str, nbytes: int) -> bool:
        """Return whether the input folder has a file of this name and size. Raise `EndpointUnreachable`."""
        async with self._session() as session, session.head(self._view(SavedFile("", name, "", "input"))) as answer:
            return bool(answer.status == 200 and answer.headers.get("Content-Length") == str(nbytes))

    async def fetch(self, file: SavedFile) -> bytes:
        """Return the bytes of a saved file. Raise as `chunks`, and `EndpointFailed` if it is larger than 1 GiB."""
        data = bytearray()
        async for chunk in self.chunks(file):
            data += chunk
            if len(data) > _MOST_BYTES:
                raise EndpointFailed(f"file {file.filename!r} at {self.name} is larger than {_MOST_BYTES} bytes; copy it by other means")
        return bytes(data)

    async def chunks(self, file: SavedFile) -> AsyncIterator[bytes]:
        """Yield the bytes of a saved file.

        Raises:
            EndpointUnreachable
            EndpointFailed: the server does not have it; then ``details["reason"]`` is ``missing``. Or it cannot send it.
        """
        async with self._session() as session, session.get(self._view(file)) as answer:
            if answer.status in (400, 403, 404):
                raise EndpointFailed(
                    f"{self.name} no longer has file {file.filename!r}; run the workflow again", endpoint=self.name, reason="missing"
                )
            if answer.status != 200:
                raise EndpointFailed(f"{self.name} cannot send file {file.filename!r} (HTTP {answer.status})", endpoint=self.name)
            async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                yield chunk

    def _view(self, file: SavedFile) -> str:
        return f"{self.url}/view?filename={quote(file.filename)}&subfolder={quote(file.subfolder)}&type={quote(file.folder)}"

    # -- following ----------------------------------------------------------------------------------------------

    async def _post_prompt(self, session: Any, body: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a prompt. A cancelled caller waits for the response, because a prompt that is not queued yet cannot be withdrawn."""

        async def post() -> dict[str, Any]:
            async with session.post(f"{self.url}/prompt", json=body) as answer:
                return await self._document(answer)

        posting = asyncio.ensure_future(post())
        try:
            return await asyncio.shield(posting)
        except asyncio.CancelledError:
            await asyncio.wait({posting}, timeout=_PATIENCE)
            posting.cancel()
            raise

    async def _follow(self, socket: Any, prompt_id: str, on_message: MessageCallback, on_preview: PreviewCallback | None) -> None:
        """Forward messages until the prompt ends or the connection closes. After a silence, the queue shows whether it still exists."""
        import aiohttp

        closed = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        while True:
            try:
                message = await socket.receive(timeout=_SILENCE)
            except asyncio.TimeoutError:
                if not await self._is_queued(prompt_id):
                    return
                continue
            if message.type in closed:
                return
            if message.type is aiohttp.WSMsgType.BINARY and on_preview is not None:
                preview = _preview(message.data, prompt_id)
                if preview is not None:
                    on_preview(*preview)
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            found = json.loads(message.data)
            data = found.get("data")
            if isinstance(data, Mapping) and data.get("prompt_id") == prompt_id:
                on_message(str(found.get("type")), data)
                if found.get("type") == "executing" and data.get("node") is None:
                    return

    async def _is_queued(self, prompt_id: str) -> bool:
        queue = await self._get("/queue")
        return any(prompt_id in item for kind in ("queue_running", "queue_pending") for item in queue[kind])

    async def _entry(self, prompt_id: str) -> dict[str, Any]:
        while True:
            entry = (await self._get(f"/history/{prompt_id}")).get(prompt_id)
            if isinstance(entry, dict):
                return entry
            if not await self._is_queued(prompt_id):
                entry = (await self._get(f"/history/{prompt_id}")).get(prompt_id)
                if not isinstance(entry, dict):
                    raise Cancelled(f"prompt {prompt_id} was removed from the queue of {self.name}", endpoint=self.name)
                return entry
            await asyncio.sleep(_PAUSE)

    async def is_known(self, prompt_id: str) -> bool:
        """Return whether a prompt is in the queue or in the history. Raise `EndpointUnreachable`."""
        if prompt_id in await self._get(f"/history/{prompt_id}"):
            return True
        queue = await self._get("/queue")
        return any(prompt_id in item for kind in ("queue_running", "queue_pending") for item in queue[kind])

    async def _withdraw(self, prompt_id: str) -> None:
        with contextlib.suppress(EndpointUnreachable):
            async with self._session() as session:
                await session.post(f"{self.url}/queue", json={"delete": [prompt_id]})
                await session.post(f"{self.url}/interrupt", json={"prompt_id": prompt_id})

    # -- requests -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Any]:
        import aiohttp

        try:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_PATIENCE)
            async with aiohttp.ClientSession(timeout=timeout, headers=dict(self._headers())) as session:
                yield session
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise EndpointUnreachable(
                f"no ComfyUI answers at {self.name} ({type(error).__name__}: {error}); check that it is running", endpoint=self.name
            ) from error

    async def _get(self, path: str) -> dict[str, Any]:
        async with self._session() as session, session.get(f"{self.url}{path}") as answer:
            return await self._document(answer)

    async def _document(self, answer: Any) -> dict[str, Any]:
        try:
            found = json.loads(await answer.read())
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise EndpointFailed(
                f"the response of {self.name} (HTTP {answer.status}) is not JSON; check that it is a ComfyUI", endpoint=self.name
            )
        return found


def _preview(data: bytes, prompt_id: str) -> tuple[str, bytes] | None:
    """Return the media type and the bytes of the preview in a binary message, or None for another message or prompt."""
    if len(data) < 8:
        return None
    kind, second = struct.unpack_from(">II", data)
    if kind == _PREVIEW and second in _MEDIA_TYPES:
        return _MEDIA_TYPES[second], data[8:]
    if kind == _PREVIEW_WITH_METADATA and len(data) >= 8 + second:
        try:
            facts = json.loads(data[8 : 8 + second])
        except ValueError:
            return None
        if isinstance(facts, Mapping) and facts.get("prompt_id") in (None, prompt_id):
            return str(facts.get("image_type") or "image/jpeg"), data[8 + second :]
    return None


def _refused(name: str, facts: Mapping[str, Any]) -> InvalidStructure:
    error = facts.get("error")
    overall = error if isinstance(error, Mapping) else {"message": str(error)}
    by_node = facts.get("node_errors") or {}
    lines = [
        f"node {node} ({entry.get('class_type')}): {each.get('message')}: {each.get('details')}"
        for node, entry in by_node.items()
        for each in entry.get("errors", ())
    ]
    listing = "\n  ".join(lines) or f"{overall.get('message')}: {overall.get('details')}"
    return InvalidStructure(f"{name} refuses the prompt:\n  {listing}", errors=lines, node_errors=dict(by_node), endpoint=name)


def _outputs(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    status = entry.get("status") or {}
    for kind, data in status.get("messages") or ():
        if kind == "execution_error":
            raise BlockFailed(
                f"{name}: node {data.get('node_id')} ({data.get('node_type')}) failed: {str(data.get('exception_message')).strip()}",
                node=data.get("node_id"),
                node_type=data.get("node_type"),
                exception_type=data.get("exception_type"),
                endpoint=name,
            )
        if kind == "execution_interrupted":
            raise Cancelled(f"{name}: the prompt was interrupted at node {data.get('node_id')} ({data.get('node_type')})", endpoint=name)
    return dict(entry.get("outputs") or {})
