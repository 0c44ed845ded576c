"""What is known of the endpoints that matter just now: whether they answer, what they have, how long their queues are.

A task on ComfyUI's main loop asks those that parts are placed on or that somebody asked about a moment ago, the silent ones
ever more rarely. While nothing is placed nothing is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from yggdrasill.errors import EndpointUnreachable, YggdrasillError
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.partition.schemas import NodeSchema, NodeSchemas
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.placement.schema_cache import read_schemas
from yggdrasill.server_ext.comfy.url_redaction import strip_urls

__all__ = ["EndpointMonitor", "EndpointState"]

_INTERVAL = 5.0
_MAX_INTERVAL = 60.0
_WATCH_TIME = 30.0
"""Seconds for which an endpoint that somebody asked about is watched."""
_MAX_FACTS_AGE = 300.0
_TIMEOUT = 5.0


@dataclass(frozen=True)
class EndpointState:
    """What an endpoint said last. Times are of `time.time`.

    ``up`` is None before it was asked; ``reason`` why it is not up, without its url, and ``kind`` the error's class, ``since`` when ``up`` changed, ``checked`` when it was asked.
    ``health`` and ``facts`` are its answers to /health and /capabilities, the last good ones.
    """

    name: str
    up: bool | None = None
    reason: str | None = None
    since: float = 0.0
    checked: float = 0.0
    health: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None

    @property
    def queue(self) -> Mapping[str, Any]:
        """``{"queued", "running", "slots"}``, empty before it was asked."""
        found = self.health.get("queue")
        return found if isinstance(found, Mapping) else {}

    @property
    def load(self) -> float:
        """Jobs per slot; infinite where it is not up."""
        numbers = [self.queue.get(name) for name in ("queued", "running", "slots")]
        if not self.up or not all(isinstance(number, (int, float)) for number in numbers):
            return float("inf")
        queued, running, slots = (float(number) for number in numbers if number is not None)
        return (queued + running) / max(slots, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without its url."""
        return {
            "name": self.name,
            "up": self.up,
            "reason": self.reason,
            "kind": self.kind,
            "since": self.since,
            "checked": self.checked,
            "health": dict(self.health),
            "facts": {key: value for key, value in self.facts.items() if key != "peer_url"},
        }


@dataclass
class _Watched:
    """An endpoint that is watched: the client it is asked with, its state, and when to ask again (`time.monotonic`)."""

    client: EndpointClient
    state: EndpointState
    due: float = 0.0
    interval: float = 1.0
    facts_at: float = float("-inf")
    query: asyncio.Task[None] | None = None
    schemas: dict[str, NodeSchema] = field(default_factory=dict)


class EndpointMonitor:
    """States by name. What is called `state...` may be called from any thread and never waits; the rest belongs to the main loop."""

    def __init__(self, known: Callable[[], EndpointRegistry]) -> None:
        self._known = known
        self._watched: dict[str, _Watched] = {}
        self._watch_until: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    # -- what is known ------------------------------------------------------------------------------------------

    def state(self, name: str) -> EndpointState:
        """What is known of an endpoint now."""
        found = self._watched.get(name)
        return EndpointState(name) if found is None else found.state

    def states(self) -> dict[str, EndpointState]:
        """What is known of each endpoint of the registry now, by name."""
        return {name: self.state(name) for name in sorted(self._known().endpoints)}

    # -- query -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch; on the main loop, where it goes on until `stop`."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """Watch no longer."""
        self._stopped = True
        self._wake.set()
        questions = [watched.query for watched in self._watched.values() if watched.query is not None]
        for task in [*questions, *([self._task] if self._task else [])]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def watch(self, names: Iterable[str]) -> None:
        """Somebody wants to know about these for a while; called again as long as that is so."""
        until = time.monotonic() + _WATCH_TIME
        self._watch_until.update(dict.fromkeys(names, until))
        self._wake.set()

    async def refresh(self, names: Collection[str], *, max_age: float, timeout: float) -> dict[str, EndpointState]:
        """The states of ``names``, asked for now where they are older than ``max_age`` timeout, and waited for ``seconds`` at most."""
        registry = self._known()
        self.watch(names)
        old = [name for name in names if name in registry.endpoints and time.time() - self._current(registry, name).state.checked > max_age]
        if old:
            await asyncio.wait([self._query(registry, name) for name in old], timeout=timeout)
        return {name: self.state(name) for name in names}

    async def requery(self, name: str) -> EndpointState:
        """Its state after it was asked for everything anew."""
        registry = self._known()
        self._current(registry, name).facts_at = float("-inf")
        await asyncio.wait([self._query(registry, name)], timeout=_TIMEOUT)
        return self.state(name)

    async def schemas(self, names: Iterable[str], classes: Collection[str], *, timeout: float) -> NodeSchemas:
        """The schemas of ``classes`` from those of the endpoints ``names`` that are up and have them; each is asked for a class once."""
        asked = [self._watched[name] for name in names if name in self._watched and self._watched[name].state.up]
        questions = [asyncio.ensure_future(_fetch_schemas(watched, classes)) for watched in asked]
        if questions:
            await asyncio.wait(questions, timeout=timeout)
        found = NodeSchemas()
        for watched in reversed(asked):
            found |= {name: watched.schemas[name] for name in classes if name in watched.schemas}
        return found

    async def _watch(self) -> None:
        wait = _INTERVAL
        while not self._stopped:
            with host_api.shielded("the endpoints could not be watched"):
                wait = self._query_due()
            self._wake.clear()
            woken = asyncio.ensure_future(self._wake.wait())
            # not wait_for: before Python 3.12 it may lose a cancellation
            await asyncio.wait([woken], timeout=wait)
            woken.cancel()

    def _query_due(self) -> float:
        """Ask those that are due; gives the seconds until the next one is."""
        registry, now = self._known(), time.monotonic()
        self._watch_until = {name: until for name, until in self._watch_until.items() if until > now}
        placed = {name for placement in registry.placements.values() for name in placement.endpoints}
        wanted = [name for name in registry.endpoints if name in placed or name in self._watch_until]
        self._watched = {name: watched for name, watched in self._watched.items() if name in registry.endpoints}
        for name in wanted:
            if self._current(registry, name).due <= now:
                self._query(registry, name)
        # the file of the registry is looked at as often as that, though nobody is asked
        return min([_INTERVAL, *(max(self._watched[name].due - now, 0.05) for name in wanted)])

    def _current(self, registry: EndpointRegistry, name: str) -> _Watched:
        """What is known of an endpoint as the registry has it now; another url or token is another endpoint."""
        client, found = registry.client(name), self._watched.get(name)
        if found is None or found.client is not client:
            if found is None or registry.endpoint(name).url != found.client.url:
                found = _Watched(client, EndpointState(name))
            else:
                found = replace(found, client=client, due=0.0, query=None)
            self._watched[name] = found
        return found

    def _query(self, registry: EndpointRegistry, name: str) -> asyncio.Task[None]:
        watched = self._current(registry, name)
        if watched.query is None or watched.query.done():
            watched.due = float("inf")
            watched.query = asyncio.get_running_loop().create_task(self._run_query(name, watched))
        return watched.query

    async def _run_query(self, name: str, watched: _Watched) -> None:
        up, reason, kind, health, facts = True, None, None, watched.state.health, watched.state.facts
        try:
            health = await _with_timeout(watched.client, watched.client.health())
            if time.monotonic() - watched.facts_at > _MAX_FACTS_AGE or not watched.state.up:
                facts = await _with_timeout(watched.client, watched.client.capabilities(), 4 * _TIMEOUT)
                watched.facts_at = time.monotonic()
                watched.client.facts = dict(facts)
                watched.schemas.clear()
        except YggdrasillError as error:
            up, reason, kind = False, strip_urls(error.message), type(error).__name__
        finally:
            watched.interval = _INTERVAL if up else min(2 * watched.interval, _MAX_INTERVAL)
            watched.due = time.monotonic() + watched.interval
        was, now = watched.state, time.time()
        since = was.since if was.up is up else now
        watched.state = EndpointState(name, up, reason, since, now, health, facts, kind)


async def _fetch_schemas(watched: _Watched, classes: Iterable[str]) -> None:
    wanted = sorted(set(classes) - set(watched.schemas))
    if wanted:
        with host_api.shielded(f"endpoint {watched.client.name!r} did not tell its node classes"):
            forms = await _with_timeout(watched.client, watched.client.nodes(wanted))
            watched.schemas.update(read_schemas(forms))


async def _with_timeout(client: EndpointClient, question: Any, timeout: float = _TIMEOUT) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = await asyncio.wait_for(loop_thread().run_async(question), timeout)
    except asyncio.TimeoutError:
        raise EndpointUnreachable(f"endpoint {client.name!r} did not answer within {timeout:g} s", endpoint=client.name) from None
    return answer
