"""Graphs, pipelines, stages and worlds that this endpoint serves: built once, kept live, found again after a restart."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from yggdrasill.errors import DuplicateName, InvalidArgument, InvalidConfig, StorageFailed, UnknownGraph, choices, unknown
from yggdrasill.foundation.contract import Resolver
from yggdrasill.foundation.documents import parse_document, read_document
from yggdrasill.foundation.graph import Graph
from yggdrasill.foundation.pool import ReusePool
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.pipeline.flow import Flow
from yggdrasill.pipeline.pipeline import Pipeline
from yggdrasill.remote.comfy_graph import ComfyGraph, can_run_prompts
from yggdrasill.server_ext.calls import KINDS
from yggdrasill.server_ext.configs import HostRules, check_config
from yggdrasill.server_ext.describe import contract_of, kind_of_config
from yggdrasill.stage.stage import Stage
from yggdrasill.values.files import FileSet
from yggdrasill.world.world import World

__all__ = ["Deployment", "Deployments", "canonical_json", "check_graph_id", "deployment_hash"]

_CLASSES: dict[str, Any] = {"graph": Graph, "pipeline": Pipeline, "stage": Stage, "world": World, "comfy": ComfyGraph}
_RECORD: dict[str, Any] = {"graph_id": str, "kind": str, "hash": str, "config": dict, "has_state": bool}
_LONGEST_ID = 200
_LOG = logging.getLogger("yggdrasill.server")


@dataclass(frozen=True)
class Deployment:
    """A live runnable under a name. ``exclusive`` ones run one call at a time, because calls change them."""

    graph_id: str
    kind: str
    hash: str
    config: dict[str, Any]
    runnable: Any = field(repr=False)
    contract: dict[str, Any] = field(repr=False)
    by_owner: bool = False
    #: Seconds without a call after which it is removed; None: never.
    idle_after: float | None = None

    @property
    def exclusive(self) -> bool:
        """Whether calls must not overlap."""
        return bool(self.contract["stateful"])

    @property
    def accepts_handles(self) -> bool:
        """Whether inputs may be handles: a stage hands them to pipelines, which take them, or carries them over."""
        return self.kind == "stage" or bool(getattr(self.runnable, "accepts_handles", False))

    def summary(self) -> dict[str, Any]:
        """``{graph_id, kind, hash}``."""
        return {"graph_id": self.graph_id, "kind": self.kind, "hash": self.hash}


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def deployment_hash(kind: str, config: Mapping[str, Any], state: Any = None) -> str:
    """The name of what is deployed: blake3 over kind, config and ``state`` (its skeleton and payload hashes)."""
    from blake3 import blake3

    return blake3(canonical_json({"kind": kind, "config": config, "state": state})).hexdigest()


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
        self._folder = folder
        self._rules = rules
        self._registry = registry or BlockRegistry.global_registry()
        self._pool = pool or ReusePool()
        self._resolver = resolver
        self._live: dict[str, Deployment] = {}
        #: Files that were left out, by what was said of them; once is enough.
        self._left_out: dict[Path, str] = {}
        #: When those that are not kept for ever were called last, by the monotonic clock; a restart counts as a call.
        self._called = {
            record["graph_id"]: (time.monotonic(), record["idle_after"]) for record in self._stored() if record.get("idle_after")
        }
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
                record = self._read(graph_id)
                if record is None:
                    raise unknown(
                        "graph", graph_id, self.names(), "Deploy it first, or name it to 'yggdrasill serve --graph'.", UnknownGraph
                    )
                self._live[graph_id] = self._restore(graph_id, record)
            return self._live[graph_id]

    def names(self) -> list[str]:
        """The ids of everything served."""
        return sorted({*self._live, *(entry["graph_id"] for entry in self._stored())})

    def summaries(self) -> list[dict[str, Any]]:
        """``{graph_id, kind, hash}`` of everything served, built or not."""
        found = {entry["graph_id"]: {name: entry[name] for name in ("graph_id", "kind", "hash")} for entry in self._stored()}
        found |= {name: deployment.summary() for name, deployment in self._live.items()}
        return [found[name] for name in sorted(found)]

    def touch(self, graph_id: str) -> None:
        """Somebody calls it."""
        if graph_id in self._called:
            self._called[graph_id] = time.monotonic(), self._called[graph_id][1]

    def idle(self) -> list[str]:
        """What was not called for as long as it is to be kept."""
        now = time.monotonic()
        return [graph_id for graph_id, (called, kept) in self._called.items() if now - called > kept]

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
        if kind not in KINDS:
            raise InvalidArgument(f"kind is {kind[:60]!r}; an endpoint serves {choices(KINDS, near=kind)}")
        with self._building(graph_id):
            there = self._live.get(graph_id) or (self.get(graph_id) if self._read(graph_id) else None)
            if there is not None and there.hash == graph_hash:
                self.touch(graph_id)
                return there, False
            if there is not None and there.by_owner:
                raise DuplicateName(f"graph {graph_id!r} is served by this endpoint's owner, with another config; deploy under another id")
            deployment = replace(self._build(graph_id, kind, dict(config), graph_hash, state), idle_after=idle_after)
            self._write(deployment, state)
            self._live[graph_id] = deployment
            self._called.pop(graph_id, None)
            if idle_after is not None:
                self._called[graph_id] = time.monotonic(), idle_after
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
        config = read_document(path) if path.is_file() else None
        if config is None:
            config_file = next(
                (path / name for name in ("config.yaml", "config.yml", "config.json") if (path / name).is_file()), path / "config.json"
            )
            config = read_document(config_file)
        kind = kind_of_config(config)
        options: dict[str, Any] = {"registry": self._registry, "pool": self._pool, "endpoints": self._resolver()}
        runnable = (
            _CLASSES[kind].from_config(config, base_dir=path.parent, **options) if path.is_file() else _CLASSES[kind].load(path, **options)
        )
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
            UnknownGraph
        """
        with self._building(graph_id):
            record = self._read(graph_id)
            if self._live.pop(graph_id, None) is None and record is None:
                raise unknown("graph", graph_id, self.names(), kind=UnknownGraph)
            self._called.pop(graph_id, None)
            for suffix in (".json", ".ygg"):
                self._file(graph_id, suffix).unlink(missing_ok=True)

    # -- building -----------------------------------------------------------------------------------------------

    def _build(self, graph_id: str, kind: str, config: dict[str, Any], graph_hash: str, state: Any) -> Deployment:
        checked = check_config(config, self._rules)
        if kind_of_config(config) != kind:
            raise InvalidConfig(f"the config of {graph_id!r} is one of a {kind_of_config(config)}, not of a {kind}")
        cls = _CLASSES[kind]
        runnable = cls.from_config(checked, self._registry, pool=self._pool, endpoints=self._resolver(), allow_ref=False)
        if not can_run_prompts() and any(isinstance(part, ComfyGraph) for part in _parts(runnable)):
            raise InvalidConfig(
                f"{graph_id!r} holds a ComfyUI workflow, which runs only on an endpoint that is a ComfyUI; this one is none"
            )
        if state is not None:
            runnable.load_state_dict(state)
        return self._deployment(graph_id, kind, config, graph_hash, runnable)

    @staticmethod
    def _deployment(
        graph_id: str, kind: str, config: dict[str, Any], graph_hash: str, runnable: Any, *, by_owner: bool = False
    ) -> Deployment:
        return Deployment(graph_id, kind, graph_hash, config, runnable, contract_of(graph_id, kind, graph_hash, runnable), by_owner)

    # -- files --------------------------------------------------------------------------------------------------

    def _file(self, graph_id: str, suffix: str) -> Path:
        """A file name that no id can steer anywhere else."""
        readable = re.sub(r"[^a-z0-9]+", "-", graph_id.lower()).strip("-")[:40]
        return self._folder / f"{readable}-{hashlib.sha256(graph_id.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}{suffix}"

    def _write(self, deployment: Deployment, state: Any) -> None:
        from yggdrasill.values import dumps

        record = {**deployment.summary(), "config": deployment.config, "has_state": state is not None, "idle_after": deployment.idle_after}
        with FileSet(durable=True) as files:
            if state is not None:
                files.write(self._file(deployment.graph_id, ".ygg"), dumps(state))
            files.write(self._file(deployment.graph_id, ".json"), json.dumps(record, indent=1, ensure_ascii=False).encode("utf-8"))

    def _read(self, graph_id: str) -> dict[str, Any] | None:
        return _read_record(self._file(graph_id, ".json"))

    def _stored(self) -> list[dict[str, Any]]:
        files = sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []
        found = []
        for file in files:
            try:
                record = _read_record(file)
                if record is not None and self._file(record["graph_id"], ".json").name == file.name:
                    found.append(record)
                elif record is not None:
                    raise InvalidConfig(f"{str(file)!r} is a copy of the record of {record['graph_id']!r}; delete it")
            except (InvalidConfig, StorageFailed) as error:
                if self._left_out.get(file) != error.message:
                    self._left_out[file] = error.message
                    _LOG.warning("a file among the served graphs is left out: %s", error.message)
        return found

    def _restore(self, graph_id: str, record: Mapping[str, Any]) -> Deployment:
        from yggdrasill.values import load

        state = load(self._file(graph_id, ".ygg"), mmap=False) if record["has_state"] else None
        built = self._build(graph_id, record["kind"], record["config"], record["hash"], state)
        return replace(built, idle_after=record.get("idle_after"))


def _parts(runnable: Any) -> Iterator[Any]:
    """A runnable and everything below it that stands at a place of its own."""
    yield runnable
    if isinstance(runnable, Flow):
        yield from (part for _, part in runnable.walk())
    elif isinstance(runnable, World):
        for stage in runnable.stages.values():
            yield from _parts(stage)


def _read_record(file: Path) -> dict[str, Any] | None:
    try:
        record = parse_document(file.read_text(encoding="utf-8"), str(file), yaml=False)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageFailed(f"cannot read {str(file)!r}: {error}", path=str(file)) from error
    for name, kind in _RECORD.items():
        if not isinstance(record.get(name), kind):
            raise InvalidConfig(
                f"{str(file)!r} is no record of something deployed (without a proper {name!r}); this folder is the endpoint's own: "
                "move the file elsewhere, and deploy it if it is a config"
            )
    return record


def check_graph_id(graph_id: str) -> str:
    """``graph_id`` if it can be the name of something served.

    Raises:
        InvalidArgument
    """
    if not graph_id.strip() or len(graph_id) > _LONGEST_ID or not graph_id.isprintable():
        raise InvalidArgument(f"a graph id is 1 to {_LONGEST_ID} printable characters, got {graph_id[:60]!r}")
    return graph_id
