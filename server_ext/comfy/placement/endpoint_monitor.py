"""Monitors the endpoints in use: whether they respond, their inventory, and the length of their queues.

A task on ComfyUI's main loop queries the endpoints that a placement names or that were requested recently; silent ones are queried less and
less often. While nothing is placed, nothing is queried.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from yggdrasill.errors import CheckpointMismatch, EndpointUnreachable, InvalidStructure, YggdrasillError
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.partition.schemas import NodeSchema, NodeSchemas
from yggdrasill.remote.preflight import (
    DifferentFile,
    MissingItem,
    check_at,
    choice_gaps,
    different_models,
    missing_at,
    models_of,
    not_offered,
)
from yggdrasill.remote.retry import Retry
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.placement.schema_cache import read_schemas
from yggdrasill.server_ext.comfy.url_redaction import strip_urls

__all__ = ["STARTING", "EndpointMonitor", "EndpointState"]

_INTERVAL = 5.0
_MAX_INTERVAL = 60.0
_WATCH_TIME = 30.0
"""Seconds for which an endpoint is monitored after a request for it."""
_MAX_FACTS_AGE = 300.0
_TIMEOUT = 5.0
_OWN_PREFIX = "Yggdrasill"
STARTING = "starting"
"""The kind of the state of an endpoint that has reported its health and not yet its capabilities."""


@dataclass(frozen=True)
class EndpointState:
    """The latest answers of an endpoint. Times are those of `time.time`.

    ``up`` is None before the first query. ``reason`` is why it is not up, without its URL, and ``kind`` the class of that error or `STARTING`. ``since`` is the
    time when ``up`` changed, ``checked`` the time of the last query. ``health`` and ``facts`` are the latest successful answers to /health and
    /capabilities.
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
        """Return ``{"queued", "running", "slots"}``, empty before the first answer."""
        found = self.health.get("queue")
        return found if isinstance(found, Mapping) else {}

    @property
    def load(self) -> float:
        """Return the jobs per slot, infinite if the endpoint is not up."""
        numbers = [self.queue.get(name) for name in ("queued", "running", "slots")]
        if not self.up or not all(isinstance(number, (int, float)) for number in numbers):
            return float("inf")
        queued, running, slots = (float(number) for number in numbers if number is not None)
        return (queued + running) / max(slots, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, without the endpoint's URL."""
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
    """A monitored endpoint: the client that queries it, its state, and the time of the next query (`time.monotonic`)."""

    client: EndpointClient
    state: EndpointState
    due: float = 0.0
    interval: float = 1.0
    facts_at: float = float("-inf")
    query: asyncio.Task[None] | None = None
    #: Whether the running query has received the health; the first capabilities can take much longer.
    has_answered: bool = False
    schemas: dict[str, NodeSchema] = field(default_factory=dict)
    entries: dict[str, Any] = field(default_factory=dict)


class EndpointMonitor:
    """The states of endpoints by name. `state` and `states` may be called from any thread and never wait; use the rest on the main loop."""

    def __init__(self, read_registry: Callable[[], EndpointRegistry]) -> None:
        self._read_registry = read_registry
        self._watched: dict[str, _Watched] = {}
        self._watch_until: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    # -- states -------------------------------------------------------------------------------------------------

    def state(self, name: str) -> EndpointState:
        """Return the current state of an endpoint."""
        found = self._watched.get(name)
        return EndpointState(name) if found is None else found.state

    def states(self) -> dict[str, EndpointState]:
        """Return the current state of each endpoint in the registry, by name."""
        return {name: self.state(name) for name in sorted(self._read_registry().endpoints)}

    # -- queries -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start monitoring on the main loop, until `stop`."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """Stop monitoring."""
        self._stopped = True
        self._wake.set()
        queries = [watched.query for watched in self._watched.values() if watched.query is not None]
        for task in [*queries, *([self._task] if self._task else [])]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def watch(self, names: Iterable[str]) -> None:
        """Monitor these endpoints for `_WATCH_TIME` seconds from now."""
        until = time.monotonic() + _WATCH_TIME
        self._watch_until.update(dict.fromkeys(names, until))
        self._wake.set()

    async def refresh(
        self, names: Collection[str], *, max_age: float, timeout: float, facts_timeout: float = 0.0, new_facts: bool = False
    ) -> dict[str, EndpointState]:
        """Return the states of ``names``. States older than ``max_age`` seconds are queried again, waiting at most ``timeout`` seconds.

        For the capabilities of endpoints that have reported their health, wait ``facts_timeout`` seconds more: the first ones read every node
        class and model folder. With ``new_facts``, the capabilities of endpoints that are up are queried again at any age.
        """
        registry = self._read_registry()
        self.watch(names)
        watched = {name: self._current(registry, name) for name in names if name in registry.endpoints}
        renewed = [name for name in watched if new_facts and watched[name].state.up]
        for name in renewed:
            watched[name].facts_at = float("-inf")
        old = [name for name in watched if name in renewed or time.time() - watched[name].state.checked > max_age]
        if old:
            await asyncio.wait([self._query(registry, name) for name in old], timeout=timeout)
        # a query that was running before may have read the health only
        again = [self._query(registry, name) for name in renewed if watched[name].state.up and watched[name].facts_at == float("-inf")]
        if again:
            await asyncio.wait(again, timeout=timeout)
        starting = [self._query(registry, name) for name in old if (new_facts or not self.state(name).up) and self.is_answering(name)]
        if starting and facts_timeout:
            await asyncio.wait(starting, timeout=facts_timeout)
        return {name: self.state(name) for name in names}

    def is_answering(self, name: str) -> bool:
        """Return whether an endpoint has reported its health in the running query, and its capabilities are still expected."""
        watched = self._watched.get(name)
        return watched is not None and watched.has_answered and watched.query is not None and not watched.query.done()

    async def requery(self, name: str) -> EndpointState:
        """Query the health and the capabilities of an endpoint again, and return its state."""
        registry = self._read_registry()
        self._current(registry, name).facts_at = float("-inf")
        await asyncio.wait([self._query(registry, name)], timeout=_TIMEOUT)
        return self.state(name)

    async def schemas(self, names: Iterable[str], classes: Collection[str], *, timeout: float) -> NodeSchemas:
        """Return the schemas of ``classes`` from those of ``names`` that are up and have them. Each endpoint is queried once per class."""
        watched_up = [self._watched[name] for name in names if name in self._watched and self._watched[name].state.up]
        queries = [asyncio.ensure_future(_fetch_schemas(watched, classes)) for watched in watched_up]
        if queries:
            await asyncio.wait(queries, timeout=timeout)
        found = NodeSchemas()
        for watched in reversed(watched_up):
            found |= {name: watched.schemas[name] for name in classes if name in watched.schemas}
        return found

    async def choice_gaps(self, name: str, prompt: Mapping[str, Any], *, timeout: float) -> list[MissingItem]:
        """Return the choices of a prompt that an endpoint does not offer; nothing if it does not answer in time.

        The options of a class are kept, and queried again before a choice counts as missing.
        """
        watched = self._watched.get(name)
        if watched is None or not watched.state.up:
            return []
        classes = {str(node["class_type"]) for node in prompt.values() if not str(node["class_type"]).startswith(_OWN_PREFIX)}
        await _fetch_entries(watched, classes - set(watched.entries), timeout)
        found = choice_gaps(prompt, watched.entries, compat.validates_itself, models_of(watched.state.facts))
        if found:
            await _fetch_entries(watched, {str(prompt[item.node_id]["class_type"]) for item in found}, timeout)
            found = choice_gaps(prompt, watched.entries, compat.validates_itself, models_of(watched.state.facts))
        return found

    async def missing(self, name: str, prompt: Mapping[str, Any], *, timeout: float) -> list[MissingItem] | None:
        """Return what an endpoint lacks for a prompt; None if it is not a ComfyUI.

        The options of its own lists decide on the values that are chosen from lists.
        """
        found = missing_at(prompt, self.state(name).facts)
        if found is None or any(item.kind == "node class" for item in found):
            return found
        choices = await self.choice_gaps(name, prompt, timeout=timeout)
        watched = self._watched.get(name)
        found = not_offered(found, prompt, watched.entries) if watched is not None else found
        known = {(item.node_id, item.name) for item in found}
        return [*found, *(item for item in choices if (item.node_id, item.name) not in known)]

    async def entry(self, name: str, class_type: str, *, timeout: float, fresh: bool = False) -> dict[str, Any] | None:
        """Return an endpoint's /object_info entry of a class, queried again if ``fresh``; None if it does not answer in time."""
        watched = self._watched.get(name)
        if watched is None or not watched.state.up:
            return None
        if fresh or class_type not in watched.entries:
            await _fetch_entries(watched, [class_type], timeout)
        found: dict[str, Any] | None = watched.entries.get(class_type)
        return found

    async def entries(self, name: str, classes: Collection[str], *, timeout: float, fresh: bool = False) -> Mapping[str, Any] | None:
        """Return an endpoint's /object_info entries of ``classes``, queried again if ``fresh``.

        An endpoint that is down has the entries that it returned last; the result is None if it never returned any.
        """
        watched = self._watched.get(name)
        if watched is None:
            return None
        if watched.state.up:
            await _fetch_entries(watched, classes if fresh else set(classes) - set(watched.entries), timeout)
        found = {name: watched.entries[name] for name in classes if watched.entries.get(name) is not None}
        return found or None

    async def different_models(self, name: str, prompt: Mapping[str, Any], *, timeout: float) -> list[DifferentFile]:
        """Return the model files of a prompt that differ at an endpoint; nothing if it does not answer in time."""
        watched = self._watched.get(name)
        if watched is None or not watched.state.up:
            return []
        with contextlib.suppress(YggdrasillError, asyncio.TimeoutError):
            return await asyncio.wait_for(loop_thread().run_async(different_models(prompt, watched.client, Retry())), timeout)
        return []

    async def difference(
        self, name: str, prompt: Mapping[str, Any], *, timeout: float, compare_models: bool = True
    ) -> YggdrasillError | None:
        """Return the error if an endpoint has other node classes or, with ``compare_models``, other model files under the names in a prompt.

        The result is None too if the endpoint does not answer in time; the call checks again.
        """
        watched = self._watched.get(name)
        if watched is None or not watched.state.up:
            return None
        try:
            await asyncio.wait_for(
                loop_thread().run_async(check_at(prompt, watched.client, Retry(), compare_models=compare_models)), timeout
            )
        except (InvalidStructure, CheckpointMismatch) as error:
            return error
        except (YggdrasillError, asyncio.TimeoutError):
            return None
        return None

    async def _watch(self) -> None:
        wait = _INTERVAL
        while not self._stopped:
            with compat.shielded("the endpoints could not be monitored"):
                wait = self._query_due()
            self._wake.clear()
            woken = asyncio.ensure_future(self._wake.wait())
            # not wait_for: before Python 3.12 it may lose a cancellation
            await asyncio.wait([woken], timeout=wait)
            woken.cancel()

    def _query_due(self) -> float:
        """Start the queries that are due, and return the seconds until the next one is."""
        registry, now = self._read_registry(), time.monotonic()
        self._watch_until = {name: until for name, until in self._watch_until.items() if until > now}
        placed = {name for placement in registry.placements.values() for name in placement.endpoints}
        wanted = [name for name in registry.endpoints if name in placed or name in self._watch_until]
        self._watched = {name: watched for name, watched in self._watched.items() if name in registry.endpoints}
        for name in wanted:
            if self._current(registry, name).due <= now:
                self._query(registry, name)
        # the registry file is read at this interval even while nothing is queried
        return min([_INTERVAL, *(max(self._watched[name].due - now, 0.05) for name in wanted)])

    def _current(self, registry: EndpointRegistry, name: str) -> _Watched:
        """Return the entry for an endpoint as the registry currently defines it. Another URL or token makes it a new endpoint."""
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
            watched.has_answered = False
            health = await _with_timeout(watched.client, watched.client.health())
            watched.has_answered = True
            if not watched.state.up:
                watched.state = replace(watched.state, reason="it has started, and its node classes are not known yet", kind=STARTING)
            if time.monotonic() - watched.facts_at > _MAX_FACTS_AGE or not watched.state.up:
                facts = await _with_timeout(watched.client, watched.client.capabilities(), 4 * _TIMEOUT)
                watched.facts_at = time.monotonic()
                watched.client.facts = dict(facts)
                watched.schemas.clear()
                watched.entries.clear()
        except YggdrasillError as error:
            up, reason, kind = False, strip_urls(error.message), type(error).__name__
        finally:
            watched.interval = _INTERVAL if up else min(2 * watched.interval, _MAX_INTERVAL)
            watched.due = time.monotonic() + watched.interval
        before, checked = watched.state, time.time()
        since = before.since if before.up is up else checked
        watched.state = EndpointState(name, up, reason, since, checked, health, facts, kind)


async def _fetch_schemas(watched: _Watched, classes: Iterable[str]) -> None:
    wanted = sorted(set(classes) - set(watched.schemas))
    if wanted:
        with compat.shielded(f"endpoint {watched.client.name!r} did not return its node classes"):
            forms = await _with_timeout(watched.client, watched.client.nodes(wanted))
            watched.schemas.update(read_schemas(forms))


async def _fetch_entries(watched: _Watched, classes: Iterable[str], timeout: float) -> None:
    wanted = sorted(classes)
    if wanted:
        with compat.shielded(f"endpoint {watched.client.name!r} did not return its node classes"):
            forms = await _with_timeout(watched.client, watched.client.nodes(wanted), timeout)
            # a class without an entry is not queried again until the capabilities are
            watched.entries.update({**dict.fromkeys(wanted), **forms["nodes"]})


async def _with_timeout(client: EndpointClient, request: Any, timeout: float = _TIMEOUT) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = await asyncio.wait_for(loop_thread().run_async(request), timeout)
    except asyncio.TimeoutError:
        raise EndpointUnreachable(f"endpoint {client.name!r} did not answer within {timeout:g} s", endpoint=client.name) from None
    return answer
