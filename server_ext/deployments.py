"""The deployments of an endpoint: configs are checked, built once, kept live, and restored after a restart."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from yggdrasill.errors import (
    AccessDenied,
    DuplicateName,
    InvalidArgument,
    InvalidConfig,
    StorageFailed,
    UnknownGraph,
    YggdrasillError,
    format_options,
    unknown_name,
)
from yggdrasill.foundation.config import BuildOptions, read_document
from yggdrasill.foundation.container import Container
from yggdrasill.foundation.contract import Resolver
from yggdrasill.foundation.kinds import build_project, kind_of, kinds
from yggdrasill.foundation.pool import ReusePool
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.pipeline.dag import Dag
from yggdrasill.remote.comfy_graph import ComfyGraph, can_run_prompts
from yggdrasill.server_ext.configs import HostRules, check_config, declared_settings, legacy_world_folder
from yggdrasill.server_ext.deployment import Deployment, IdleReaper, check_graph_id, deployment_hash, file_name
from yggdrasill.server_ext.deployment_files import DeploymentFiles
from yggdrasill.server_ext.describe import contract_of
from yggdrasill.server_ext.principals import ADMIN, OWNER, OWNER_NAME, Principal
from yggdrasill.world.world import World

__all__ = ["Deployments"]


class Deployments:
    """The deployments of one endpoint. Methods that build may block for long (weights): call them from a worker thread.

    Records are kept in ``folder``. ``resolver()`` returns the resolver that places parts of a config on other endpoints, or None.
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
        self._registry = registry or BlockRegistry.global_registry()
        self._rules = replace(rules, settings=partial(declared_settings, self._registry))
        self._pool = pool or ReusePool()
        self._resolver = resolver
        #: The deployments that are built, by id.
        self.live: dict[str, Deployment] = {}
        #: Deployments with an ``idle_after``; a restart counts as a call.
        self.reaper = IdleReaper()
        for record in self._files.summaries():
            self.reaper.start(record["graph_id"], record["idle_after"])
        self._locks: WeakValueDictionary[str, threading.RLock] = WeakValueDictionary()
        self._locks_lock = threading.Lock()

    def _lock_of(self, graph_id: str) -> threading.RLock:
        # one lock per id: a build may wait for the contract of another endpoint, which may wait for another build on this one
        with self._locks_lock:
            return self._locks.setdefault(graph_id, threading.RLock())

    # -- reading ------------------------------------------------------------------------------------------------

    def get(self, graph_id: str) -> Deployment:
        """Return the deployment with this id, built if necessary.

        Raises:
            UnknownGraph: there is no such deployment. Otherwise any error of its construction.
        """
        found = self.live.get(graph_id)
        if found is not None:
            return found
        with self._lock_of(graph_id):
            if graph_id not in self.live:
                record = self._files.read(graph_id)
                if record is None:
                    raise self._unknown(graph_id)
                self.live[graph_id] = self._restore(graph_id, record)
            return self.live[graph_id]

    def level_and_hash(self, graph_id: str) -> tuple[str, str]:
        """Return kind and hash of the deployment with this id, built or not.

        Raises:
            UnknownGraph: there is no such deployment. InvalidConfig, StorageFailed: its record cannot be read.
        """
        live = self.live.get(graph_id)
        found: Mapping[str, Any] | None = self._files.read(graph_id) if live is None else live.summary()
        if found is None:
            raise self._unknown(graph_id)
        return found["kind"], found["hash"]

    def _unknown(self, graph_id: str) -> YggdrasillError:
        return unknown_name("graph", graph_id, self.names(), "Deploy it first, or pass it to 'yggdrasill serve --graph'.", UnknownGraph)

    def names(self) -> list[str]:
        """Return the ids of all deployments."""
        return sorted({*self.live, *(entry["graph_id"] for entry in self._files.summaries())})

    def summaries(self) -> list[dict[str, Any]]:
        """Return ``{graph_id, kind, hash}`` of all deployments, built or not."""
        found = {entry["graph_id"]: {name: entry[name] for name in ("graph_id", "kind", "hash")} for entry in self._files.summaries()}
        found |= {name: deployment.summary() for name, deployment in list(self.live.items())}
        return [found[name] for name in sorted(found)]

    # -- writing ------------------------------------------------------------------------------------------------

    def put(
        self,
        graph_id: str,
        kind: str,
        config: Mapping[str, Any],
        graph_hash: str,
        state: Any = None,
        idle_after: float | None = None,
        principal: Principal = OWNER,
    ) -> tuple[Deployment, bool]:
        """Deploy a config that arrived over a network. Return the deployment, and False if an equal one already existed.

        An equal one that ``principal`` may change gets the new ``idle_after``. An earlier deployment that no longer builds is replaced like any other.

        Raises:
            InvalidArgument, InvalidConfig, UnknownBlockType, CheckpointMismatch ...: nothing changed.
            DuplicateName: the endpoint's owner configured another deployment with this id.
            AccessDenied: another principal deployed another one with this id.
            StorageFailed: the record cannot be written.
        """
        self.check_name(graph_id, kind)
        with self._lock_of(graph_id):
            live = self.live.get(graph_id)
            if live is None and (self._readable_record(graph_id) or {}).get("hash") == graph_hash:
                live = self.get(graph_id)
            if live is not None and live.hash == graph_hash:
                return self._keep_for(principal, live, idle_after), False
            if live is not None and live.by_owner:
                raise DuplicateName(
                    f"Graph {graph_id!r} was configured by the endpoint's owner with another config. Deploy under another id."
                )
            self.check_deployer(graph_id, principal)
            self._adopt_world_folder(graph_id)
            built = self._build(graph_id, kind, dict(config), graph_hash, state)
            deployment = replace(built, idle_after=idle_after, deployer=principal.name)
            self._files.write(deployment, state)
            self.live[graph_id] = deployment
            self.reaper.start(graph_id, idle_after)
            return deployment, True

    @staticmethod
    def check_name(graph_id: str, kind: str) -> None:
        """Raise `InvalidArgument` unless ``graph_id`` is a valid id and ``kind`` can be deployed."""
        check_graph_id(graph_id)
        served = [known.name for known in kinds() if known.servable]
        if kind not in served:
            raise InvalidArgument(f"Unknown kind {kind[:60]!r}. Available: {format_options(served, near=kind)}.")

    def keep_equal(self, graph_id: str, graph_hash: str, idle_after: float | None, principal: Principal = OWNER) -> dict[str, Any] | None:
        """Return the summary of the deployment with this id and hash, live or stored, or None without one. Nothing is built.

        It gets the new ``idle_after`` if ``principal`` may change it.
        """
        with self._lock_of(graph_id):
            live = self.live.get(graph_id)
            if live is not None:
                return self._keep_for(principal, live, idle_after).summary() if live.hash == graph_hash else None
            record = self._readable_record(graph_id)
            if record is None or record["hash"] != graph_hash:
                return None
            if principal.may_touch(record.get("deployer", OWNER_NAME)):
                if record.get("idle_after") != idle_after:
                    self._files.set_idle_after(record, idle_after)
                self.reaper.start(graph_id, idle_after)
            else:
                self.reaper.touch(graph_id)
            return {name: record[name] for name in ("graph_id", "kind", "hash")}

    def check_deployer(self, graph_id: str, principal: Principal) -> None:
        """Raise `AccessDenied` if another principal deployed the graph and ``principal`` may not change it."""
        live = self.live.get(graph_id)
        deployer = live.deployer if live is not None else (self._readable_record(graph_id) or {}).get("deployer", OWNER_NAME)
        exists = live is not None or self._files.exists(graph_id)
        if exists and not principal.may_touch(deployer):
            raise AccessDenied(
                f"Graph {graph_id!r} was deployed by another principal. Deploy under another id, or ask the endpoint's owner for the role "
                f"{ADMIN!r}.",
                reason="owner",
            )

    def _keep_for(self, principal: Principal, existing: Deployment, idle_after: float | None) -> Deployment:
        """Return an equal deployment, with the new ``idle_after`` if ``principal`` may change it."""
        if principal.may_touch(existing.deployer):
            return self._keep(existing, idle_after)
        self.reaper.touch(existing.graph_id)
        return existing

    def _readable_record(self, graph_id: str) -> dict[str, Any] | None:
        """Return the record of a deployment, or None if it has none or a damaged one, which is replaced."""
        try:
            return self._files.read(graph_id)
        except InvalidConfig:
            return None

    def _keep(self, existing: Deployment, idle_after: float | None) -> Deployment:
        """Return a deployment with another ``idle_after``. One of the owner has none."""
        if existing.by_owner or existing.idle_after == idle_after:
            self.reaper.touch(existing.graph_id)
            return existing
        kept = replace(existing, idle_after=idle_after)
        record = self._readable_record(kept.graph_id)
        if record is not None:
            self._files.rewrite(kept, has_state=record["has_state"])
        self.live[kept.graph_id] = kept
        self.reaper.start(kept.graph_id, idle_after)
        return kept

    def build_once(self, graph_id: str, kind: str, config: Mapping[str, Any]) -> Deployment:
        """Build a config that arrived over a network for one call. It is checked like a deployed one, but neither stored nor listed.

        Raises:
            InvalidArgument, InvalidConfig, LimitExceeded ...: the config is invalid.
        """
        return self._build(check_graph_id(graph_id), kind, dict(config), deployment_hash(kind, config), None)

    def add_file(self, path: Path) -> Deployment:
        """Deploy a config file, or a folder written by ``save``, as the endpoint's owner: ``ref`` and paths are allowed.

        Raises:
            InvalidConfig, MissingFile, ...: the config is invalid. DuplicateName: another file has the same id.
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
        with self._lock_of(graph_id):
            if graph_id in self.live:
                raise DuplicateName(f"{str(path)!r} and another file both have the id {graph_id!r}. Give one of them another id.")
            built_config = runnable.to_config()
            graph_hash = deployment_hash(kind, built_config)
            self.live[graph_id] = self._deployment(graph_id, kind, built_config, graph_hash, runnable, by_owner=True)
            # a caller may have deployed this id before the owner did; its limit does not apply to the owner's graph
            self.reaper.untrack(graph_id)
            return self.live[graph_id]

    def remove(self, graph_id: str, principal: Principal = OWNER) -> None:
        """Remove a deployment. Running calls are not affected.

        Raises:
            UnknownGraph: there is no such deployment. AccessDenied: the endpoint's owner configured it, or another principal deployed it.
            StorageFailed: its files cannot be deleted; it stays deployed.
        """
        with self._lock_of(graph_id):
            live = self.live.get(graph_id)
            if live is not None and live.by_owner:
                raise AccessDenied(
                    f"Graph {graph_id!r} was configured by the endpoint's owner, so callers cannot remove it.", reason="owner"
                )
            if live is None and not self._files.exists(graph_id):
                raise unknown_name("graph", graph_id, self.names(), kind=UnknownGraph)
            self.check_deployer(graph_id, principal)
            self._files.remove(graph_id)
            self.live.pop(graph_id, None)
            self.reaper.untrack(graph_id)

    def release_built(self) -> None:
        """Release the runnables that can be built again from their records, models included. The next call builds them; running calls are not affected.

        Those of the endpoint's owner, and those whose calls change their state, are kept.
        """
        for graph_id, live in list(self.live.items()):
            if not (live.by_owner or live.exclusive) and self._files.exists(graph_id):
                lock = self._lock_of(graph_id)
                # a deployment that is being built or replaced is in use
                if lock.acquire(blocking=False):
                    try:
                        self.live.pop(graph_id, None)
                    finally:
                        lock.release()

    # -- building -----------------------------------------------------------------------------------------------

    def _build(self, graph_id: str, kind: str, config: dict[str, Any], graph_hash: str, state: Any) -> Deployment:
        checked = check_config(config, self._rules, file_name(graph_id))
        described = kind_of(config, "graph").name
        if described != kind:
            raise InvalidConfig(f"The config of {graph_id!r} describes a {described}, not a {kind}.")
        runnable = build_project(checked, BuildOptions(self._registry, self._pool, None, self._resolver(), allow_ref=False))
        if not can_run_prompts() and any(isinstance(part, ComfyGraph) for part in _parts(runnable)):
            raise InvalidConfig(
                f"{graph_id!r} contains a ComfyUI workflow. Workflows run only on ComfyUI endpoints; this endpoint is not a ComfyUI."
            )
        if state is not None:
            # only blocks that name no model bring their state along
            load = runnable.load_own_state if isinstance(runnable, Container) else runnable.load_state_dict
            load(state)
        return self._deployment(graph_id, kind, config, graph_hash, runnable)

    def _restore(self, graph_id: str, record: Mapping[str, Any]) -> Deployment:
        state = self._files.read_state(graph_id) if record["has_state"] else None
        adopted = self._adopt_world_folder(graph_id)
        built = self._build(graph_id, record["kind"], record["config"], record["hash"], state)
        restored = replace(built, idle_after=record.get("idle_after"), deployer=record.get("deployer", OWNER_NAME))
        if adopted:
            self._files.rewrite(restored, has_state=record["has_state"])
        return restored

    def _adopt_world_folder(self, graph_id: str) -> bool:
        """Copy the states that a world of an earlier release stored in the folder of its world id into its own. Return whether it did.

        The old folder stays: other deployments may have used it too.

        Raises:
            StorageFailed: it cannot be copied.
        """
        record = self._readable_record(graph_id)
        name = None if record is None or "world_folder" in record else legacy_world_folder(record["config"])
        source, target = self._rules.worlds / (name or ""), self._rules.worlds / file_name(graph_id)
        if name is None or target.exists() or not source.is_dir():
            return False
        copy = target.with_name(f"{target.name}.partial")
        try:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy)
            copy.rename(target)
        except OSError as error:
            raise StorageFailed(
                f"Cannot copy the stored states of world {name!r} from {str(source)!r} to {str(target)!r}: {error}.", path=str(source)
            ) from error
        return True

    @staticmethod
    def _deployment(
        graph_id: str, kind: str, config: dict[str, Any], graph_hash: str, runnable: Any, *, by_owner: bool = False
    ) -> Deployment:
        return Deployment(graph_id, kind, graph_hash, config, runnable, contract_of(graph_id, kind, graph_hash, runnable), by_owner)


def _parts(runnable: Any) -> Iterator[Any]:
    """Yield a runnable and all runnables below it."""
    yield runnable
    if isinstance(runnable, Dag):
        yield from (part for _, part in runnable.walk())
    elif isinstance(runnable, World):
        for stage in runnable.stages.values():
            yield from _parts(stage)
