"""The plan of a verification: what a version needs on this machine, found out before anything is changed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from yggdrasill.errors import VersionIncomplete, YggdrasillError
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.version_specs.cache import LinkRefused, ModelCache
from yggdrasill.version_specs.fetch import DOWNLOAD_RETRIES, PARALLEL
from yggdrasill.version_specs.installation import check_packages, check_revision, comfy_python
from yggdrasill.version_specs.model import CustomNode, ModelFile, VersionSpec
from yggdrasill.version_specs.nodes import check_node
from yggdrasill.version_specs.places import models_folder
from yggdrasill.version_specs.sources import SourcePool

__all__ = ["Missing", "Plan", "Progress", "VerifyOptions", "incomplete", "plan_version", "size_text", "ticking"]

Progress = Callable[[int, int, str], object]
"""Called with the bytes that are done, all bytes, and what is being done."""
_TICK_S = 0.1
_PROBES = 16
_SPARE_BYTES = 64 << 20
_KINDS = ("comfyui", "package", "node", "model")
"""Space that is left on the disk."""


@dataclass(frozen=True)
class Missing:
    """A thing that the version needs and this machine does not have. ``kind`` is comfyui, model, node or package."""

    kind: str
    name: str
    reason: str
    nbytes: int | None = None

    def __str__(self) -> str:
        size = "" if self.nbytes is None else f" ({size_text(self.nbytes)})"
        return f"{self.kind} {self.name}{size}: {self.reason}"


@dataclass(frozen=True)
class VerifyOptions:
    """How a version is verified.

    Attributes:
        models_dir: The folder of models, instead of the spec's.
        python: The Python of ComfyUI; None for that of its environment, without which packages are not checked.
        allow_private: Whether sources may be private addresses or plain http; None for ``YGGDRASILL_ALLOW_PRIVATE_URLS``.
        parallel: Files that are fetched at the same time.
        retry_policy: How long a lost source is tried again.
        silence: How many seconds a source may send nothing.
        environment: Environment variables: tokens, folders.
    """

    models_dir: str | Path | None = None
    python: Path | None = None
    allow_private: bool | None = None
    parallel: int = PARALLEL
    retry_policy: RetryPolicy = DOWNLOAD_RETRIES
    silence: float = 60.0
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)


@dataclass
class Plan:
    """What a version needs on this machine.

    Attributes:
        models: The folder of models.
        present: Models that are in it, or are linked to the cache.
        linking: Models that are cached and not linked yet.
        fetching: Models to fetch, with their sizes as far as they are known.
        installing: Custom nodes to install or to check out, with the reason.
        impossible: What cannot be had.
        notes: What was not checked.
    """

    models: Path
    present: list[ModelFile] = field(default_factory=list)
    linking: list[ModelFile] = field(default_factory=list)
    fetching: dict[str, tuple[ModelFile, int | None]] = field(default_factory=dict)
    installing: list[tuple[CustomNode, str]] = field(default_factory=list)
    impossible: list[Missing] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def total_bytes(self) -> int:
        """Return the bytes to fetch; models of one content count once, those of unknown size as nothing."""
        return sum({model.sha256: nbytes or 0 for model, nbytes in self.fetching.values()}.values())

    def lines(self) -> list[str]:
        """Return what is fetched and installed, in lines of text; the total size first."""
        missing = self.missing()
        if not missing:
            return []
        return [f"{len(missing)} missing, {size_text(self.total_bytes)} to fetch:", *(f"- {entry}" for entry in missing)]

    def missing(self) -> list[Missing]:
        """Return all that is missing: what cannot be had, by kind and name, then what can be fetched."""
        models = [Missing("model", name, "is not in the cache", nbytes) for name, (_, nbytes) in self.fetching.items()]
        nodes = [Missing("node", node.name, reason) for node, reason in self.installing]
        # it is found by concurrent checks
        impossible = sorted(self.impossible, key=lambda entry: (_KINDS.index(entry.kind), entry.name))
        return [*impossible, *models, *nodes]


async def plan_version(
    spec: VersionSpec,
    *,
    comfy_home: Path,
    store: ModelCache,
    pool: SourcePool | None,
    progress: Progress | None = None,
    options: VerifyOptions | None = None,
) -> Plan:
    """Return what a version needs. With ``pool`` the sizes of missing models are requested from their sources, else nothing is sent.

    Files whose hash is not known are read.
    """
    chosen = options or VerifyOptions()
    plan = Plan(models_folder(spec, comfy_home, chosen.models_dir, chosen.environment))
    await asyncio.gather(
        asyncio.to_thread(_plan_installation, spec, plan, comfy_home, chosen.python),
        asyncio.to_thread(_plan_nodes, spec, plan, comfy_home),
        _plan_models(spec, plan, store, progress),
    )
    if pool is not None:
        await _probe_sources(spec, plan, pool)
        _check_space(plan, store)
    return plan


def _plan_installation(spec: VersionSpec, plan: Plan, home: Path, python: Path | None) -> None:
    definition = spec.definition
    if definition.base_comfy_version:
        reason = check_revision(home, definition.base_comfy_version)
        if reason is not None:
            plan.impossible.append(Missing("comfyui", definition.base_comfy_version, reason))
    if not definition.pip_dependencies:
        return
    chosen = python or comfy_python(home)
    if chosen is None:
        plan.notes.append(f"packages were not checked: {home} has no Python environment; name it with --python FILE")
        return
    plan.impossible += [Missing("package", name, reason) for name, reason in check_packages(chosen, definition.pip_dependencies)]


def _plan_nodes(spec: VersionSpec, plan: Plan, home: Path) -> None:
    for node in spec.definition.custom_nodes:
        folder = home / "custom_nodes" / node.name
        reason = check_node(node, folder)
        if reason is None:
            continue
        if node.repository or (node.registry_version and not folder.exists()):
            plan.installing.append((node, reason))
        else:
            plan.impossible.append(Missing("node", node.name, f"{reason}; it has no repository, so copy it to {folder}"))


async def _plan_models(spec: VersionSpec, plan: Plan, store: ModelCache, progress: Progress | None) -> None:
    if plan.models.exists() and not plan.models.is_dir():
        plan.impossible.append(Missing("model", str(plan.models), "the folder of models is a file; remove or rename it"))
        return
    wanted = {model.target: model for model in spec.definition.models}
    hashing = _Hashing(sum(model.size_bytes or 0 for model in wanted.values()))
    async with ticking(progress, hashing.state, "hashing"):
        for model in wanted.values():
            await asyncio.to_thread(_plan_model, spec, plan, store, model, hashing.add)
    store.hashes.save()


class _Hashing:
    """The bytes that were hashed."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total

    def add(self, nbytes: int) -> None:
        """Count bytes that were read."""
        self.done += nbytes

    def state(self) -> tuple[int, int]:
        """Return the bytes done and all bytes."""
        return self.done, max(self.done, self.total)


def _plan_model(spec: VersionSpec, plan: Plan, store: ModelCache, model: ModelFile, report: Callable[[int], object]) -> None:
    """Put a model into the list of the plan that it belongs to."""

    def impossible(reason: str) -> None:
        plan.impossible.append(Missing("model", model.target, reason, model.size_bytes))

    if model.sha256 is None:
        impossible("the spec has no sha256 for it; run: yggdrasill version lock")
        return
    place = plan.models / model.target
    try:
        found = store.hashes.hash(place, report) if place.is_file() else None
        if found == model.sha256:
            plan.present.append(model)
            return
        if found is not None and not place.is_symlink():
            impossible(f"{str(place)!r} is another file, with sha256 {found}; remove or rename it")
            return
        store.check_place(plan.models, model.target)
        cached = store.check(model.sha256, report)
    except LinkRefused as error:
        impossible(str(error))
        return
    except OSError as error:
        impossible(f"{str(place)!r} cannot be read: {error.strerror or error}")
        return
    if cached:
        plan.linking.append(model)
    elif spec.sources_of(model):
        plan.fetching[model.target] = (model, model.size_bytes)
    else:
        source = (
            f"its blob {model.blob_id!r} is on the platform of Comfy"
            if model.blob_id
            else "it is only on the machine where the spec was made"
        )
        impossible(f"{source}; copy it to {str(place)!r}, or add a url to x-yggdrasill.sources")


async def _probe_sources(spec: VersionSpec, plan: Plan, pool: SourcePool) -> None:
    """Find out the sizes of the models to fetch, and which of them no source has."""
    gate = asyncio.Semaphore(_PROBES)

    async def probe(name: str, model: ModelFile) -> None:
        messages = []
        for url in spec.sources_of(model):
            try:
                async with gate:
                    facts = await pool.open(url).facts()
            except YggdrasillError as error:
                messages.append(error.message)
                continue
            if facts.nbytes is not None and model.size_bytes not in (None, facts.nbytes):
                messages.append(
                    f"{url.partition('?')[0]} has {facts.nbytes} bytes, expected {model.size_bytes}. Correct the size or the source."
                )
                continue
            plan.fetching[name] = (model, facts.nbytes if model.size_bytes is None else model.size_bytes)
            return
        del plan.fetching[name]
        plan.impossible.append(Missing("model", name, " ".join(messages), model.size_bytes))

    await asyncio.gather(*(probe(name, model) for name, (model, _) in list(plan.fetching.items())))


def _check_space(plan: Plan, store: ModelCache) -> None:
    """Report models that do not fit on the disk of the cache."""
    existing = next(folder for folder in (store.folder.absolute(), *store.folder.absolute().parents) if folder.exists())
    kept = sum(store.part_size(model.sha256 or "") or 0 for model, _ in plan.fetching.values())
    free = shutil.disk_usage(existing).free
    if plan.total_bytes - kept > max(free - _SPARE_BYTES, 0):
        reason = f"{size_text(plan.total_bytes)} are to be fetched, and {str(existing)!r} has {size_text(free)} free; free space, or set COMFY_CACHE_ROOT to another disk"
        plan.impossible += [Missing("model", name, reason, nbytes) for name, (_, nbytes) in plan.fetching.items()]
        plan.fetching.clear()


@asynccontextmanager
async def ticking(progress: Progress | None, state: Callable[[], tuple[int, int]], what: str) -> AsyncIterator[None]:
    """Report progress while the block runs, and once at its end, if there was anything to do."""
    if progress is None or not what:
        yield
        return

    async def tick() -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            progress(*state(), what)

    ticking = asyncio.ensure_future(tick())
    try:
        yield
    finally:
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
        if state()[0]:
            progress(*state(), what)


def incomplete(spec: VersionSpec, missing: Sequence[Missing], nbytes: int) -> VersionIncomplete:
    """Return the error that lists all that is missing; ``nbytes`` is the size of the models among it."""
    lines = "".join(f"\n- {entry}" for entry in missing)
    size = f", {size_text(nbytes)} of models" if nbytes else ""
    return VersionIncomplete(
        f"Version {spec.version_id!r} is incomplete; {len(missing)} missing{size}:{lines}",
        version_id=spec.version_id,
        missing=[asdict(entry) for entry in missing],
        nbytes=nbytes,
    )


def size_text(nbytes: int) -> str:
    """Return a number of bytes with a unit."""
    size = float(nbytes)
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
