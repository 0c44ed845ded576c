"""The artifacts of a queue channel: in memory as long as they fit into messages, else in the artifact store that the workers reach too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from typing import Any

from yggdrasill.errors import InvalidConfig, PayloadTooLarge
from yggdrasill.protocol.version import PROTOCOL
from yggdrasill.remote.serverless.common_stores import CommonStore, open_store
from yggdrasill.remote.serverless.messages import REQUEST, RUN_BYTES, RUNSYNC_BYTES, encoded_bytes, read_inline, smallest_first
from yggdrasill.values.stores.base import unknown_artifact
from yggdrasill.values.stores.memory import MemoryStore

__all__ = ["ChannelArtifacts"]

_MEMORY_BYTES = 1 << 30
_LOOK_FROM = 256 << 10
"""The store is searched for artifacts of at least this size; smaller ones are sent faster."""


class ChannelArtifacts:
    """The artifacts of calls and results of the endpoint ``url``; ``store`` is its setting, see `open_store`."""

    def __init__(self, url: str, store: str | None) -> None:
        self._url, self._setting = url, store
        self._memory = MemoryStore(quota_bytes=_MEMORY_BYTES)
        #: Artifacts that were put into the store, or were found there.
        self._stored: dict[str, int] = {}

    async def store(self) -> CommonStore | None:
        """Return the artifact store, or None. Raise as `open_store`."""
        if self._setting is None:
            return None
        return await asyncio.to_thread(open_store, self._setting, f"endpoint {self._url!r}")

    async def missing(self, sizes: Mapping[str, int]) -> list[str]:
        """Return those of the artifacts that are neither in memory nor in the store."""
        absent = [name for name in sizes if name not in self._stored and not self._memory.has(name)]
        large = [name for name in absent if sizes[name] >= _LOOK_FROM]
        store = await self.store() if large else None
        if store is not None:
            lacking = set(await store.missing(large))
            self._stored.update({name: sizes[name] for name in large if name not in lacking})
        return [name for name in absent if name not in self._stored]

    async def put(self, name: str, data: memoryview) -> None:
        """Keep the verified bytes of an artifact: in memory if a message can have them, else in the store.

        Raises:
            PayloadTooLarge: no message can have them, and the endpoint has no store.
        """
        if encoded_bytes(data.nbytes) > RUN_BYTES:
            store = await self.store()
            if store is not None:
                await store.put(name, data)
                self._stored[name] = data.nbytes
                return
        if encoded_bytes(data.nbytes) > RUNSYNC_BYTES:
            raise self._too_large(data.nbytes)
        await asyncio.to_thread(self._memory.put, data, hash=name, verify=False)

    async def read(self, name: str) -> memoryview:
        """Return the bytes of an artifact. Raise `UnknownArtifact`, or as `CommonStore.read`."""
        if self._memory.has(name):
            return self._memory.read(name)
        store = await self.store()
        if store is None:
            raise unknown_artifact(name)
        return await store.read(name)

    def keep(self, owner: str, names: Collection[str]) -> None:
        """Keep artifacts in memory until `release`."""
        self._memory.lease(owner, names)

    def release(self, owner: str) -> None:
        """Allow artifacts to be forgotten."""
        self._memory.release(owner)

    def forget_stored(self, names: Collection[str]) -> None:
        """Forget that artifacts are in the store: a worker did not find them there."""
        for name in names:
            self._stored.pop(name, None)

    # -- messages -----------------------------------------------------------------------------------------------

    async def body(self, message: Mapping[str, Any], sizes: Mapping[str, int], policy: Mapping[str, Any]) -> tuple[bytes, bool]:
        """Return the JSON body of the request that queues ``message`` with its artifacts, and whether it needs /runsync, which takes larger ones.

        Artifacts that do not fit are put into the store.

        Raises:
            PayloadTooLarge: they do not fit, and the endpoint has no store.
        """
        store = await self.store()
        whole: dict[str, Any] = {"type": REQUEST, "protocol": PROTOCOL, **message}
        if store is not None:
            whole["store"] = store.mark
        stored = {name: self._stored[name] for name in sizes if name in self._stored and not self._memory.has(name)}
        in_memory = {name: sizes[name] for name in sizes if name not in stored}
        base = len(_json(whole, policy)) + (100 * len(sizes)) + 100
        limit = RUN_BYTES
        inline = smallest_first(in_memory, limit - base)
        rest = [name for name in in_memory if name not in set(inline)]
        if store is not None:
            for name in rest:
                if name not in self._stored:
                    await store.put(name, self._memory.read(name))
                stored[name] = self._stored[name] = in_memory[name]
        elif rest or base > limit:
            limit = RUNSYNC_BYTES
            inline = smallest_first(in_memory, limit - base)
            if len(inline) < len(in_memory):
                raise self._too_large(base + sum(map(encoded_bytes, in_memory.values())))
        if inline:
            whole["artifacts"] = {name: await asyncio.to_thread(_base64, self._memory.read(name)) for name in inline}
        if stored:
            whole["stored"] = stored
        body = await asyncio.to_thread(_json, whole, policy)
        if len(body) > (RUNSYNC_BYTES if store is not None or limit == RUNSYNC_BYTES else RUN_BYTES):
            raise self._too_large(len(body))
        return body, len(body) > RUN_BYTES

    async def receive(self, envelope: Mapping[str, Any]) -> None:
        """Keep the artifacts of a result.

        Raises:
            CorruptData: bytes that do not match their hash. InvalidConfig: they are in a store that this process does not have.
        """
        for name, data in (await asyncio.to_thread(read_inline, envelope.get("artifacts"))).items():
            await asyncio.to_thread(self._memory.put, data, hash=name, verify=False)
        stored = envelope.get("stored")
        if isinstance(stored, Mapping) and stored:
            store = await self.store()
            if store is None or store.mark != envelope.get("store"):
                raise InvalidConfig(
                    f"A worker of {self._url!r} put its result into an artifact store that this process does not have. Set 'store' of the endpoint in "
                    "endpoints.yaml to the store of the worker."
                )
            self._stored.update({str(name): int(nbytes) for name, nbytes in stored.items()})

    def _too_large(self, nbytes: int) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"A request of {nbytes} bytes is over the {RUNSYNC_BYTES} that a serverless endpoint accepts, and {self._url!r} has no artifact store for its "
            "tensors. Set 'store' of the endpoint in endpoints.yaml, and YGGDRASILL_ARTIFACT_STORE at its workers, to a store that both reach.",
            nbytes=nbytes,
            bound=RUNSYNC_BYTES,
        )


def _base64(data: memoryview) -> str:
    import base64

    return base64.b64encode(data).decode("ascii")


def _json(message: Mapping[str, Any], policy: Mapping[str, Any]) -> bytes:
    return json.dumps({"input": message, "policy": policy}, separators=(",", ":"), allow_nan=False).encode("utf-8")
