"""Graphs, pipelines, stages and worlds that this endpoint serves: checked, built once, kept live, found again after a restart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from yggdrasill.errors import DuplicateName, InvalidArgument, InvalidConfig, UnknownGraph, format_options, unknown_name
from yggdrasill.foundation.config import BuildOptions, read_document
from yggdrasill.foundation.container import Container
from yggdrasill.foundation.contract import Resolver
from yggdrasill.foundation.kinds import build_project, kind_of, kinds
from yggdrasill.foundation.pool import ReusePool
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.pipeline.dag import Dag
from yggdrasill.remote.comfy_graph import ComfyGraph, can_run_prompts
from yggdrasill.server_ext.configs import HostRules, check_config
from yggdrasill.server_ext.deployment import Deployment, check_graph_id
from yggdrasill.server_ext.deployment_files import DeploymentFiles
from yggdrasill.server_ext.describe import contract_of
from yggdrasill.server_ext.identity import deployment_hash
from yggdrasill.server_ext.idle_reaper import IdleReaper
from yggdrasill.world.world import World

__all__ = ["Deployments"]


class Deployments:
    """The folder ``graphs/`` and what was built from it. Building may take long (weights): call from a worker thread.

    ``resolver`` gives, for each config, what places parts of it on other endpoints, or None.
    """

    def __init__(
        self,
        folder: Path,
        rules: HostRules,
        *,
        registry: BlockRegistry | None = None,
        pool: ReusePool | None = None,
        resolver: Callable[[], Resolver | None] = lambda: None,
    ) -> None:
        self._files = DeploymentFiles(folder)
        self._rules = rules
        self._registry = registry or BlockRegistry.global_registry()
        self._pool = pool or ReusePool()
        self._resolver = resolver
        self._live: dict[str, Deployment] = {}
        #: What is kept only while somebody calls it; a restart counts as a call.
        self.clock = IdleReaper()
        for record in self._files.records():
            self.clock.start(record["graph_id"], record.get("idle_after"))
        self._locks: WeakValueDictionary[str, threading.RLock] = WeakValueDictionary()
        self._locks_lock = threading.Lock()

    def _building(self, graph_id: str) -> threading.RLock:
        # one for each id: what is built may wait for another endpoint's contract, and that one for something else from here
        with self._locks_lock:
            return self._locks.setdefault(graph_id, threading.RLock())

    # -- reading ------------------------------------------------------------------------------------------------

    def live(self, graph_id: str) -> Deployment | None:
        """What is served under that name, if it is built already."""
        return self._live.get(graph_id)

    def get(self, graph_id: str) -> Deployment:
        """What is served under that name, built if need be.

        Raises:
            UnknownGraph: nothing is. Otherwise whatever keeps it from being built.
        """
        found = self._live.get(graph_id)
        if found is not None:
            return found
        with self._building(graph_id):
            if graph_id not in self._live:
                record = self._files.read(graph_id)
                if record is None:
                    raise unknown_name(
                        "graph", graph_id, self.names(), "Deploy it first, or name it to 'yggdrasill serve --graph'.", UnknownGraph
                    )
                self._live[graph_id] = self._restore(graph_id, record)
            return self._live[graph_id]

    def names(self) -> list[str]:
        """The ids of everything served."""
        return sorted({*self._live, *(entry["graph_id"] for entry in self._files.records())})

    def summaries(self) -> list[dict[str, Any]]:
        """``{graph_id, kind, hash}`` of everything served, built or not."""
        found = {entry["graph_id"]: {name: entry[name] for name in ("graph_id", "kind", "hash")} for entry in self._files.records()}
        found |= {name: deployment.summary() for name, deployment in self._live.items()}
        return [found[name] for name in sorted(found)]

    # -- writing ------------------------------------------------------------------------------------------------

    def put(
        self, graph_id: str, kind: str, config: Mapping[str, Any], graph_hash: str, state: Any = None, idle_after: float | None = None
    ) -> tuple[Deployment, bool]:
        """Serve a config that came over a network; the same again changes nothing. Says whether anything was made.

        Raises:
            InvalidArgument, InvalidConfig, UnknownBlockType, CheckpointMismatch ...: nothing changed.
            DuplicateName: the owner serves something else under this name.
            StorageFailed: it could not be kept.
        """
        check_graph_id(graph_id)
        served = [known.name for known in kinds() if known.servable]
        if kind not in served:
            raise InvalidArgument(f"Unknown kind {kind[:60]!r}. Available: {format_options(served, near=kind)}.")
        with self._building(graph_id):
            there = self._live.get(graph_id) or (self.get(graph_id) if self._files.read(graph_id) else None)
            if there is not None and there.hash == graph_hash:
                self.clock.touch(graph_id)
                return there, False
            if there is not None and there.by_owner:
                raise DuplicateName(f"graph {graph_id!r} is served by this endpoint's owner, with another config; deploy under another id")
            deployment = replace(self._build(graph_id, kind, dict(config), graph_hash, state), idle_after=idle_after)
            self._files.write(deployment, state)
            self._live[graph_id] = deployment
            self.clock.start(graph_id, idle_after)
            return deployment, True

    def passing(self, graph_id: str, kind: str, config: Mapping[str, Any]) -> Deployment:
        """A config that came over a network, built for one call: it is checked like a deployed one, and neither kept nor listed.

        Raises:
            InvalidArgument, InvalidConfig, LimitExceeded ...
        """
        return self._build(check_graph_id(graph_id), kind, dict(config), deployment_hash(kind, config), None)

    def add_file(self, path: Path) -> Deployment:
        """Serve a config file, or a folder that ``save`` wrote, as the endpoint's owner: ``ref`` and paths are allowed.

        Raises:
            InvalidConfig, MissingFile, ...; DuplicateName: two files with one id.
        """
        names = ("config.yaml", "config.yml", "config.json")
        file = path if path.is_file() else next((path / name for name in names if (path / name).is_file()), path / names[-1])
        config = read_document(file)
        found = kind_of(config, "graph")
        kind, load = found.name, getattr(found.load_class(), "load", None)
        if path.is_file() or load is None:
            runnable = build_project(config, BuildOptions(self._registry, self._pool, file.parent, self._resolver()))
        else:
            runnable = load(path, registry=self._registry, pool=self._pool, endpoints=self._resolver())
        graph_id = check_graph_id(runnable.id)
        with self._building(graph_id):
            if graph_id in self._live:
                raise DuplicateName(f"{str(path)!r} and another file both hold {graph_id!r}; give one of them another id")
            built_config = runnable.to_config()
            graph_hash = deployment_hash(kind, built_config)
            self._live[graph_id] = self._deployment(graph_id, kind, built_config, graph_hash, runnable, by_owner=True)
            return self._live[graph_id]

    def remove(self, graph_id: str) -> None:
        """Serve it no longer; calls that run keep theirs.

        Raises:
            UnknownGraph. StorageFailed: it is served still.
        """
        with self._building(graph_id):
            record = self._files.read(graph_id)
            if graph_id not in self._live and record is None:
                raise unknown_name("graph", graph_id, self.names(), kind=UnknownGraph)
            self._files.remove(graph_id)
            self._live.pop(graph_id, None)
            self.clock.forget(graph_id)

    # -- building -----------------------------------------------------------------------------------------------

    def _build(self, graph_id: str, kind: str, config: dict[str, Any], graph_hash: str, state: Any) -> Deployment:
        checked = check_config(config, self._rules)
        described = kind_of(config, "graph").name
        if described != kind:
            raise InvalidConfig(f"The config of {graph_id!r} describes a {described}, not a {kind}")
        runnable = build_project(checked, BuildOptions(self._registry, self._pool, None, self._resolver(), allow_ref=False))
        if not can_run_prompts() and any(isinstance(part, ComfyGraph) for part in _parts(runnable)):
            raise InvalidConfig(
                f"{graph_id!r} holds a ComfyUI workflow, which runs only on an endpoint that is a ComfyUI; this one is none"
            )
        if state is not None:
            # only blocks that name no model bring their state along
            load = runnable.load_own_state if isinstance(runnable, Container) else runnable.load_state_dict
            load(state)
        return self._deployment(graph_id, kind, config, graph_hash, runnable)

    def _restore(self, graph_id: str, record: Mapping[str, Any]) -> Deployment:
        state = self._files.read_state(graph_id) if record["has_state"] else None
        built = self._build(graph_id, record["kind"], record["config"], record["hash"], state)
        return replace(built, idle_after=record.get("idle_after"))

    @staticmethod
    def _deployment(
        graph_id: str, kind: str, config: dict[str, Any], graph_hash: str, runnable: Any, *, by_owner: bool = False
    ) -> Deployment:
        return Deployment(graph_id, kind, graph_hash, config, runnable, contract_of(graph_id, kind, graph_hash, runnable), by_owner)


def _parts(runnable: Any) -> Iterator[Any]:
    """A runnable and everything below it that stands at a place of its own."""
    yield runnable
    if isinstance(runnable, Dag):
        yield from (part for _, part in runnable.walk())
    elif isinstance(runnable, World):
        for stage in runnable.stages.values():
            yield from _parts(stage)
