"""The files of jobs at a ComfyUI: inputs are brought there from the assets of the gateway, and what nodes save becomes assets.

Everything here runs on the loop thread. A request with ``assets``, ``{ID: {"hash", "name", "nbytes"}}``, has references to them in its prompt;
one with ``collect`` has its files and texts collected.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from yggdrasill.errors import EndpointFailed, EndpointUnreachable, InvalidArgument, StorageFailed, UnknownName
from yggdrasill.gateway.asset_model import Asset, Made
from yggdrasill.gateway.assets import AssetStore
from yggdrasill.gateway.models import Event, Job
from yggdrasill.gateway.work import Work
from yggdrasill.protocol.states import FINAL
from yggdrasill.remote.comfy_server import ComfyServer, saved_files

__all__ = ["ASSET", "Collector", "Files", "asset_ids", "is_reference"]

ASSET = "core/ASSET"
"""The type of a reference to an asset in a prompt: ``{"__type": "core/ASSET", "info": {"id": ID}}``."""
Result = TypeVar("Result")
_AT_ONCE = 4
_STORE_DELAY, _MAX_STORE_DELAY = 0.2, 5.0
_STEM = 60
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST_NAME = 200
_MAX_TEXT = 8 << 20
_FAILED_SECONDS = 10.0
_LOG = logging.getLogger("yggdrasill.gateway")


def is_reference(value: Any) -> bool:
    """Return whether a value in a prompt is a reference to an asset, also an invalid one."""
    return isinstance(value, Mapping) and value.get("__type") == ASSET


def asset_ids(prompt: Any) -> list[str]:
    """Return the ids of the assets to which a prompt refers, each once. Raise `InvalidArgument` for a reference without an id."""
    found: dict[str, None] = {}
    pending = [prompt]
    while pending:
        value = pending.pop()
        if is_reference(value):
            info = value.get("info")
            name = info.get("id") if isinstance(info, Mapping) else None
            if not isinstance(name, str) or not name:
                raise InvalidArgument(f"A reference to an asset must be {{'__type': '{ASSET}', 'info': {{'id': ID}}}}.")
            found[name] = None
        elif isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return list(found)


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    """Return a copy of a prompt with the names of files in the place of references."""
    if is_reference(value):
        return names[value["info"]["id"]]
    if isinstance(value, Mapping):
        return {key: _replaced(item, names) for key, item in value.items()}
    return [_replaced(item, names) for item in value] if isinstance(value, list) else value


class Files:
    """Moves files between ``assets`` and ComfyUIs, and keeps the credentials of jobs, which are stored nowhere.

    ``owner`` names this start of this gateway, which alone has the credentials of the jobs that it accepted. ``on_secrets`` receives them, so
    that no message contains them.
    """

    def __init__(self, assets: AssetStore, work: Work, on_secrets: Callable[[list[str]], None], owner: str) -> None:
        self.assets, self.work, self.owner = assets, work, owner
        self._on_secrets = on_secrets
        self._credentials: dict[str, dict[str, str]] = {}

    # -- credentials --------------------------------------------------------------------------------------------

    def keep_credentials(self, job_id: str, credentials: Mapping[str, str]) -> None:
        """Keep the credentials of a job in memory until it ends."""
        self._on_secrets(list(credentials.values()))
        self._credentials[job_id] = dict(credentials)

    def forget_credentials(self, job_id: str) -> None:
        """Forget the credentials of a job."""
        self._credentials.pop(job_id, None)

    def credentials_of(self, job: Job) -> dict[str, str] | None:
        """Return the credentials of a job, ``{}`` for one without, or None if they are lost."""
        return self._credentials.get(job.job_id) if job.extra.get("credentials_at") else {}

    def on_event(self, event: Event) -> None:
        """Forget the credentials of a job that has ended."""
        if event.data.get("status") in FINAL:
            self.forget_credentials(event.job_id)

    # -- inputs -------------------------------------------------------------------------------------------------

    async def place(self, server: ComfyServer, request: Mapping[str, Any]) -> dict[str, Any]:
        """Bring the assets of a request to a ComfyUI, and return its prompt with their names there.

        Raises:
            UnknownName: an asset is gone. EndpointUnreachable, EndpointFailed
        """
        wanted = request.get("assets") or {}
        if not wanted:
            return dict(request["prompt"])
        names: dict[str, str] = {}
        for asset_id, facts in wanted.items():
            names[asset_id] = await self._upload(server, asset_id, facts)
        replaced: dict[str, Any] = _replaced(request["prompt"], names)
        return replaced

    async def _upload(self, server: ComfyServer, asset_id: str, facts: Mapping[str, Any]) -> str:
        digest, placed = str(facts["hash"]), _placed_name(str(facts["name"]), str(facts["hash"]))
        if await server.has_input(placed, int(facts["nbytes"])):
            return placed
        files = self.assets.files
        stat = await files.stat(digest)
        if stat is None:
            raise UnknownName(f"The bytes of asset {asset_id!r} are gone. Upload it again, and submit the job again.", name=asset_id)
        path = await files.run(lambda: files.local.path(digest))
        assert path is not None  # noqa: S101 - a store in a folder has files
        file = await asyncio.to_thread(path.open, "rb")
        with file:
            return await server.upload(placed, file)

    # -- outputs ------------------------------------------------------------------------------------------------

    def collector(self, server: ComfyServer, job: Job, prompt: Mapping[str, Any]) -> Collector:
        """Return the collector of a job that begins."""
        return Collector(self, server, job, prompt)


class Collector:
    """Stores the files of one job as assets while its nodes report them, and what was not reported at its end."""

    def __init__(self, files: Files, server: ComfyServer, job: Job, prompt: Mapping[str, Any]) -> None:
        self._files, self._server, self._job, self._prompt = files, server, job, prompt
        self._tasks: dict[str, asyncio.Task[Asset | None]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._missing: list[str] = []

    def see(self, message: Mapping[str, Any]) -> None:
        """Receive a message about a node; the output in ``executed`` is stored in the background."""
        output = message.get("output")
        if message.get("what") == "executed" and isinstance(output, Mapping):
            shown = message.get("display_node") or message.get("display") or message.get("node")
            self._begin(str(shown), output)

    async def finish(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Store what is left of the outputs of all nodes, and return ``{"missing": [NAME]}`` if files that were reported do not exist.

        Raises:
            EndpointUnreachable, EndpointFailed: the ComfyUI does not send a file. LimitExceeded, StorageFailed: there is no room for one.
        """
        for node, output in outputs.items():
            if isinstance(output, Mapping):
                self._begin(self._shown(str(node)), output)
        try:
            await asyncio.gather(*self._tasks.values())
        except EndpointUnreachable as error:
            # the job has run, so that running it again counts
            error.details["reached"] = True
            raise
        return {"missing": sorted(self._missing)} if self._missing else {}

    async def close(self, *, failed: bool = False) -> None:
        """Stop what is not stored yet; files that a job has saved before it ``failed`` are waited for a short time."""
        if failed and self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=_FAILED_SECONDS)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _shown(self, node: str) -> str:
        """Return the node of the prompt from which a node was expanded, or itself."""
        origin = node.partition(".")[0]
        return origin if node not in self._prompt and origin in self._prompt else node

    def _begin(self, node: str, output: Mapping[str, Any]) -> None:
        for file in saved_files({node: output}):
            identity = f"{file.folder}/{file.subfolder}/{file.filename}"
            self._start(identity, node, file.filename.replace("\\", "/").rpartition("/")[2], partial(self._server.chunks, file))
        texts = output.get("text")
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            data = "\n".join(texts)[:_MAX_TEXT].encode("utf-8", "backslashreplace")
            self._start(f"text/{node}", node, f"{node.replace(':', '_')}.txt", partial(_one_chunk, data))

    def _start(self, identity: str, node: str, name: str, read: Callable[[], AsyncIterator[bytes]]) -> None:
        if identity not in self._tasks:
            made = Made(self._job, _printable(node), len(self._tasks), identity)
            self._tasks[identity] = asyncio.create_task(self._store(made, _printable(name) or "output", read))

    async def _store(self, made: Made, name: str, read: Callable[[], AsyncIterator[bytes]]) -> Asset | None:
        async with self._slots:
            try:
                asset = await _until_stored(lambda: self._add(made, name, read()))
            except EndpointFailed as error:
                if error.details.get("reason") != "missing":
                    raise
                self._missing.append(name)
                _LOG.warning("Job %s: %s", self._job.job_id, error.message)
                return None
            except StorageFailed as error:
                if error.details.get("reason") == "assets":
                    raise
                _LOG.error("Job %s: %s", self._job.job_id, error.message)
                raise StorageFailed("The gateway cannot store the files of the job. Its log has the reason.", reason="assets") from None
        await _until_stored(lambda: asyncio.wrap_future(self._files.work.report(self._job, "output", {"asset_id": asset.asset_id})))
        return asset

    async def _add(self, made: Made, name: str, chunks: AsyncIterator[bytes]) -> Asset:
        assets = self._files.assets
        asset, _ = await assets.record(await assets.receive(chunks), principal=self._job.principal, name=name, made=made)
        return asset


def _placed_name(name: str, digest: str) -> str:
    """Return the name of an asset at a ComfyUI. It has the hash, so that equal bytes are sent there once, and characters of every file system."""
    stem, dot, suffix = _UNSAFE.sub("_", name.replace("\\", "/").rpartition("/")[2]).rpartition(".")
    return f"{(stem if dot else suffix)[:_STEM]}-{digest[:16]}{dot}{suffix[:_STEM] if dot else ''}"


def _printable(text: str) -> str:
    """Return a name that every database stores."""
    return "".join(letter if letter.isprintable() else "_" for letter in text)[:_LONGEST_NAME]


async def _one_chunk(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _until_stored(act: Callable[[], Awaitable[Result]]) -> Result:
    """Return what ``act()`` returns, and call it again while the database does not answer."""
    delay = _STORE_DELAY
    while True:
        try:
            return await act()
        except StorageFailed as error:
            if error.details.get("reason") != "store":
                raise
            await asyncio.sleep(delay)
            delay = min(2 * delay, _MAX_STORE_DELAY)
