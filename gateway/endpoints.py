"""The endpoints of a gateway: which of them can run a job, and how busy they are.

Clients of endpoints belong to the loop thread (`yggdrasill.remote.loop_thread`); `on_loop_thread` runs their coroutines for this one.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from yggdrasill.errors import (
    EndpointUnreachable,
    MissingFile,
    ProtocolMismatch,
    UnknownBlockType,
    UnknownGraph,
    UnknownName,
    YggdrasillError,
    format_options,
    unknown_name,
)
from yggdrasill.gateway.models import GRAPH, PROMPT
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.comfy_server import ComfyServer
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.loop_thread import loop_thread

__all__ = ["EndpointState", "Fleet", "classes_of", "on_loop_thread", "target_of_classes"]

Result = TypeVar("Result")
_LOAD_SECONDS = 2.0
_GRAPHS_SECONDS = 10.0
_CLASSES_SECONDS = 60.0
_LACKING_SECONDS = 5.0
_PROBE_SECONDS = 5.0
_MAX_TARGETS = 4096
HEADLESS, COMFY, PLAIN = "headless", "comfy", "plain"
"""An endpoint without ComfyUI, a ComfyUI with the extension, and one without it."""


async def on_loop_thread(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of a coroutine that uses the clients of endpoints. Cancelling the caller cancels it; it cleans up by itself."""
    pending = loop_thread().start(coroutine)
    ended = asyncio.wrap_future(pending.future)
    ended.add_done_callback(lambda future: future.cancelled() or future.exception())
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        pending.cancel()
        raise


def classes_of(prompt: Mapping[str, Any]) -> list[str]:
    """Return the node classes of a prompt, each once, without those of ports."""
    found = {str(node.get("class_type")) for node in prompt.values() if isinstance(node, Mapping)}
    return sorted(name for name in found if not name.startswith("YggdrasillGraph"))


def target_of_classes(classes: Iterable[str]) -> str:
    """Return the target of prompts with these node classes: jobs with one target can run on the same endpoints."""
    return f"classes:{hashlib.blake2b('|'.join(sorted(classes)).encode(), digest_size=12).hexdigest()}"


@dataclass
class EndpointState:
    """What is known about an endpoint. ``ours`` is the number of running jobs of the store, ``reported_ours`` when the load was reported."""

    name: str
    url: str
    kind: str = HEADLESS
    is_up: bool = False
    error: str | None = None
    version: str | None = None
    queued: int = 0
    running: int = 0
    slots: int = 1
    #: Free and total memory of the devices that it computes on, and its devices, as it reports them.
    memory: list[dict[str, Any]] = field(default_factory=list)
    devices: list[dict[str, Any]] = field(default_factory=list)
    graphs: dict[str, str] = field(default_factory=dict)
    ours: int = 0
    reported_ours: int = 0
    full_until: float = 0.0
    loaded_at: float = -1e9
    graphs_at: float = -1e9
    #: Contracts by graph id and hash; node classes that it lacks, by target, with the time of the check.
    contracts: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    lacking: dict[str, tuple[float, list[str]]] = field(default_factory=dict)

    @property
    def load(self) -> int:
        """The jobs that it has: those of other callers as it reported them, and those of all gateways on the store."""
        return max(0, self.queued + self.running - self.reported_ours) + self.ours

    def summary(self) -> dict[str, Any]:
        """Return the state as JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "up": self.is_up,
            "error": self.error,
            "version": self.version,
            "queued": self.queued,
            "running": self.running,
            "slots": self.slots,
            "jobs": self.ours,
            "graphs": sorted(self.graphs),
            "memory": self.memory,
            "devices": self.devices,
        }


class Fleet:
    """The endpoints of the file ``path``, which is read again when it changes. At most ``ahead`` jobs beyond its slots go to an endpoint.
    Without the file there are no endpoints, if it ``may_lack``. ``on_secrets`` receives the tokens of endpoints.

    All methods run on the loop of the gateway.

    Raises:
        InvalidConfig, MissingFile: the file cannot be read when this object is created.
    """

    def __init__(
        self, path: Path | None, *, ahead: int = 1, may_lack: bool = False, on_secrets: Callable[[list[str]], None] = lambda found: None
    ) -> None:
        self._path, self._ahead, self._on_secrets = path, ahead, on_secrets
        self._stamp: tuple[int, int] | None = None
        self.states: dict[str, EndpointState] = {}
        self.registry = EndpointRegistry()
        self._classes: dict[str, list[str]] = {}
        self._refreshing: asyncio.Lock = asyncio.Lock()
        if path is not None and (path.exists() or not may_lack):
            self._read()
        self._add_states()

    # -- the registry -------------------------------------------------------------------------------------------

    def _read(self) -> None:
        assert self._path is not None  # noqa: S101 - checked by the callers
        try:
            status = self._path.stat()
        except OSError:
            raise MissingFile(f"No such file: {str(self._path)!r}. Pass the endpoints.yaml with --endpoints FILE.") from None
        self.registry = EndpointRegistry.from_yaml(self._path)
        self._on_secrets([endpoint.token for endpoint in self.registry.endpoints.values() if endpoint.token])
        self._stamp = status.st_mtime_ns, status.st_size

    def _add_states(self) -> None:
        known = self.registry.endpoints
        self.states = {
            name: state if (state := self.states.get(name)) is not None and state.url == endpoint.url else EndpointState(name, endpoint.url)
            for name, endpoint in known.items()
        }

    def read_again(self) -> str | None:
        """Read the file if it has changed. Return why it cannot be read, or None; then the endpoints read before stay."""
        if self._path is None:
            return None
        try:
            status = self._path.stat()
            if (status.st_mtime_ns, status.st_size) == self._stamp:
                return None
            self._read()
        except OSError as error:
            return None if self._stamp is None else f"{type(error).__name__}"
        except YggdrasillError as error:
            return error.message
        self._add_states()
        return None

    def client(self, name: str) -> EndpointClient:
        """Return the client of an endpoint. Raise `UnknownEndpoint`."""
        return self.registry.client(name)

    def server(self, name: str) -> ComfyServer:
        """Return the client of the plain routes of a ComfyUI. Raise `UnknownEndpoint`."""
        endpoint = self.registry.endpoint(name)
        return ComfyServer(endpoint.url, name, endpoint.sent_headers)

    # -- what endpoints report ----------------------------------------------------------------------------------

    async def refresh(self, *, load: float = _LOAD_SECONDS, graphs: float = _GRAPHS_SECONDS) -> None:
        """Request the load and the graphs of the endpoints for which they are older than so many seconds."""
        async with self._refreshing:
            now = time.monotonic()
            due = [
                state
                for state in self.states.values()
                if now - state.loaded_at >= load or (state.is_up and now - state.graphs_at >= graphs)
            ]
            if due:
                await asyncio.gather(*(self._refresh(state, graphs) for state in due))

    async def _refresh(self, state: EndpointState, graphs: float) -> None:
        ours = state.ours
        try:
            facts = await asyncio.wait_for(on_loop_thread(self._request(state, graphs)), _PROBE_SECONDS)
        except (YggdrasillError, asyncio.TimeoutError, OSError) as error:
            message = error.message if isinstance(error, YggdrasillError) else "no answer"
            state.is_up, state.error, state.loaded_at = False, message, time.monotonic()
            return
        state.is_up, state.error, state.loaded_at, state.reported_ours = True, None, time.monotonic(), ours
        for name, value in facts.items():
            setattr(state, name, value)

    async def _request(self, state: EndpointState, graphs: float) -> dict[str, Any]:
        """Return the changed fields of a state. Runs on the loop thread."""
        if state.kind == PLAIN:
            return await self._request_plain(state)
        client = self.client(state.name)
        try:
            health = await client.health()
        except ProtocolMismatch:
            return await self._request_plain(state)
        queue = health.get("queue") or {}
        found: dict[str, Any] = {"version": health.get("version"), **{name: int(queue.get(name, 0)) for name in ("queued", "running")}}
        found["slots"] = max(1, int(queue.get("slots", 1)))
        found["memory"] = list(health.get("memory") or ())
        if time.monotonic() - state.graphs_at >= graphs or not state.is_up:
            capabilities = await client.capabilities()
            served = await client.graphs()
            found["devices"] = list(capabilities.get("devices") or ())
            found["kind"] = COMFY if capabilities.get("comfy") else HEADLESS
            found["graphs"] = {str(graph["graph_id"]): str(graph["hash"]) for graph in served}
            found["graphs_at"] = time.monotonic()
        return found

    async def _request_plain(self, state: EndpointState) -> dict[str, Any]:
        prompts = await self.server(state.name).load()
        return {
            "kind": PLAIN,
            "running": min(prompts, 1),
            "queued": max(0, prompts - 1),
            "slots": 1,
            "graphs": {},
            "graphs_at": time.monotonic(),
        }

    def count(self, running: Mapping[str, int]) -> None:
        """Set the number of running jobs of each endpoint."""
        for name, state in self.states.items():
            state.ours = running.get(name, 0)

    def lost(self, name: str, error: str) -> None:
        """Record that an endpoint does not answer."""
        state = self.states.get(name)
        if state is not None:
            state.is_up, state.error, state.loaded_at = False, error, time.monotonic()

    def full(self, name: str, seconds: float) -> None:
        """Record that the queue of an endpoint is full for so many seconds."""
        state = self.states.get(name)
        if state is not None:
            state.full_until = time.monotonic() + seconds

    # -- which endpoint can run a job -----------------------------------------------------------------------------

    async def names_for(self, kind: str, target: str, classes: Collection[str] = ()) -> list[str]:
        """Return the endpoints that are up and can run jobs of a target. ``classes`` are the node classes of prompts."""
        if kind == GRAPH:
            return [state.name for state in self._of_graph(target)]
        usable = [
            state for state in self.states.values() if state.is_up and (state.kind == COMFY or (kind == PROMPT and state.kind == PLAIN))
        ]
        lacking = await asyncio.gather(*(self._lacking(state, target, classes) for state in usable))
        return [state.name for state, missing in zip(usable, lacking, strict=True) if not missing]

    def _of_graph(self, graph_id: str) -> list[EndpointState]:
        placement = self.registry.placements.get(graph_id)
        allowed = None if placement is None or placement.is_local else placement.endpoints
        return [
            state
            for state in self.states.values()
            if state.is_up and graph_id in state.graphs and (allowed is None or state.name in allowed)
        ]

    async def _lacking(self, state: EndpointState, target: str, classes: Collection[str]) -> list[str]:
        """Return the node classes that an endpoint lacks, as it was reported in the last minute."""
        known = state.lacking.get(target)
        if known is not None and time.monotonic() - known[0] < (_LACKING_SECONDS if known[1] else _CLASSES_SECONDS):
            return known[1]
        try:
            missing = await on_loop_thread(self._request_lacking(state, sorted(classes)))
        except YggdrasillError as error:
            self.lost(state.name, error.message)
            return list(classes) or ["?"]
        if len(state.lacking) >= _MAX_TARGETS:
            state.lacking.clear()
        state.lacking[target] = time.monotonic(), missing
        return missing

    async def _request_lacking(self, state: EndpointState, classes: list[str]) -> list[str]:
        if state.kind == COMFY:
            return [str(name) for name in (await self.client(state.name).nodes(classes))["unknown"]]
        found = await self.server(state.name).node_classes(classes)
        return [name for name in classes if name not in found]

    async def check(self, kind: str, target: str, classes: Collection[str] = (), place: str | None = None) -> None:
        """Check that an endpoint can run jobs of a target, now or when endpoints that do not answer are back.

        Raises:
            UnknownGraph, UnknownBlockType, UnknownEndpoint: none can.
            EndpointUnreachable: none of those that answer can, and others do not answer.
        """
        if place is not None:
            self.registry.endpoint(place)
        for refreshed in (False, True):
            if refreshed:
                await self.refresh(load=0.2, graphs=0.2)
            names = await self.names_for(kind, target, classes)
            if names and (place is None or place in names):
                return
        down = [state.name for state in self.states.values() if not state.is_up and place in (None, state.name)]
        if kind == GRAPH and (target in self.registry.placements or any(target in state.graphs for state in self.states.values())) and down:
            return
        if down:
            raise EndpointUnreachable(
                f"No endpoint that answers can run {target!r}, and {format_options(down)} does not answer. Submit the job again later.",
                retry_after=5.0,
            )
        if kind == GRAPH:
            served = {graph for state in self.states.values() for graph in state.graphs}
            raise unknown_name("graph", target, served, "Deploy it on an endpoint of the gateway.", UnknownGraph)
        missing = sorted({name for state in self.states.values() for name in (state.lacking.get(target) or (0.0, []))[1]})
        if not missing:
            raise UnknownName(f"No endpoint of the gateway is a ComfyUI that can run this {kind}. Add one to endpoints.yaml.", name=target)
        raise UnknownBlockType(
            f"No ComfyUI of the gateway has the node classes {format_options(missing)}. Install them there.", missing=missing
        )

    async def contract(self, graph_id: str) -> dict[str, Any] | None:
        """Return the contract of a graph at one of its endpoints, or None if none answers."""
        for state in self._of_graph(graph_id):
            key = graph_id, state.graphs[graph_id]
            if key not in state.contracts:
                try:
                    found = await on_loop_thread(self.client(state.name).contract(graph_id))
                except YggdrasillError:
                    continue
                if len(state.contracts) >= _MAX_TARGETS:
                    state.contracts.clear()
                state.contracts[key] = found
            return state.contracts[key]
        return None

    def is_stateful(self, graph_id: str, name: str) -> bool:
        """Return whether a graph is known to keep state at an endpoint."""
        state = self.states.get(name)
        contract = None if state is None else state.contracts.get((graph_id, state.graphs.get(graph_id, "")))
        return contract is not None and contract.get("stateful") is True

    def room(self, names: Iterable[str], taken: Counter[str]) -> str | None:
        """Return the least busy of the endpoints that take another job, or None. ``taken`` counts jobs that are about to be sent."""
        now = time.monotonic()
        found: list[tuple[float, str]] = []
        for name in names:
            state = self.states.get(name)
            if state is None or not state.is_up or state.full_until > now:
                continue
            load = state.load + taken[name]
            if load < state.slots + self._ahead:
                found.append((load / state.slots, name))
        return min(found)[1] if found else None

    def remember_classes(self, target: str, classes: Collection[str]) -> None:
        """Keep the node classes of a target."""
        if len(self._classes) >= _MAX_TARGETS:
            self._classes.clear()
        self._classes[target] = sorted(classes)

    def classes_of_target(self, target: str) -> list[str] | None:
        """Return the node classes of a target, or None if they are not known in this process."""
        return self._classes.get(target)
