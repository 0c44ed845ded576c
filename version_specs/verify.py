"""Verification of a version on this machine: what is missing, all of it at once, then fetching and linking it.

A version is planned first. What cannot be had is known before a byte of a model is fetched, as far as sources answer at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yggdrasill.errors import VersionIncomplete, YggdrasillError
from yggdrasill.remote.public_hosts import allows_private
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.version_specs.cache import LinkRefused, ModelCache
from yggdrasill.version_specs.fetch import DOWNLOAD_RETRIES, PARALLEL, Download, Fetcher
from yggdrasill.version_specs.installation import check_packages, check_revision, comfy_python
from yggdrasill.version_specs.model import CustomNode, ModelFile, VersionSpec
from yggdrasill.version_specs.nodes import check_node, install_node
from yggdrasill.version_specs.places import models_folder
from yggdrasill.version_specs.sources import SourcePool

__all__ = [
    "Missing",
    "Plan",
    "Progress",
    "VerifyOptions",
    "VerifyReport",
    "incomplete",
    "plan_version",
    "size_text",
    "ticking",
    "verify_version",
]

Progress = Callable[[int, int, str], object]
"""Called with the bytes that are done, all bytes, and what is being done."""
_TICK_S = 0.1
_PROBES = 16
_SPARE_BYTES = 64 << 20
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
        """Return all that is missing: what cannot be had, then what can be fetched."""
        models = [Missing("model", name, "is not in the cache", nbytes) for name, (_, nbytes) in self.fetching.items()]
        nodes = [Missing("node", node.name, reason) for node, reason in self.installing]
        return [*self.impossible, *models, *nodes]


@dataclass
class VerifyReport:
    """What a verification found and did."""

    version_id: str
    models_dir: str
    present: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    fetched_bytes: int = 0
    installed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)


async def verify_version(
    spec: VersionSpec,
    *,
    comfy_home: Path,
    cache: Path,
    progress: Progress | None = None,
    fetch: bool = True,
    options: VerifyOptions | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> VerifyReport:
    """Make this machine ready for a version and return what was done: models cached and linked, custom nodes at their commits.

    ``cache`` is the root of the cache. Without ``fetch`` nothing is sent and nothing is changed. ``say`` is called with the plan, in lines of
    text: first what is missing with its total size.

    Raises:
        VersionIncomplete: something is missing or cannot be had; the message and ``details["missing"]`` list all of it.
        StorageFailed: the cache cannot be written.
    """
    began, chosen = time.perf_counter(), options or VerifyOptions()
    allow = allows_private(chosen.environment) if chosen.allow_private is None else chosen.allow_private
    store = ModelCache(cache)
    async with SourcePool(allow_private=allow, silence=chosen.silence, environment=chosen.environment) as pool:
        plan = await plan_version(spec, comfy_home=comfy_home, store=store, pool=pool if fetch else None, progress=progress, options=chosen)
        if plan.impossible or (not fetch and plan.missing()):
            raise incomplete(spec, plan.missing(), plan.total_bytes)
        for line in plan.lines():
            say(line)
        report = VerifyReport(spec.version_id, str(plan.models), [model.target for model in plan.present], notes=plan.notes)
        if fetch:
            await _apply(spec, plan, report, comfy_home, store, pool, progress, chosen)
    report.seconds = round(time.perf_counter() - began, 3)
    return report


async def plan_version(
    spec: VersionSpec,
    *,
    comfy_home: Path,
    store: ModelCache,
    pool: SourcePool | None,
    progress: Progress | None = None,
    options: VerifyOptions | None = None,
) -> Plan:
    """Return what a version needs. With ``pool`` the sources of missing models are asked for their sizes, else nothing is sent.

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


async def _apply(
    spec: VersionSpec,
    plan: Plan,
    report: VerifyReport,
    home: Path,
    store: ModelCache,
    pool: SourcePool,
    progress: Progress | None,
    options: VerifyOptions,
) -> None:
    """Fetch, link and install what a plan lists."""
    missing: list[Missing] = []
    chosen: dict[str | None, Download] = {}
    for name, (model, nbytes) in plan.fetching.items():
        chosen.setdefault(model.sha256, Download(name, spec.sources_of(model), model.sha256, nbytes))
    downloads = list(chosen.values())
    for download in downloads:
        if download.sha256 is not None and store.check(download.sha256) is False:
            store.remove(download.sha256)
    store.remove_old_parts()
    with Fetcher(store, pool, parallel=options.parallel, retry_policy=options.retry_policy) as fetcher:
        async with ticking(progress, lambda: (fetcher.done, plan.total_bytes), f"fetching {len(downloads)} models" if downloads else ""):
            nodes = asyncio.ensure_future(_install(plan.installing, home, pool, options.environment))
            try:
                fetched = await fetcher.fetch_all(downloads)
            finally:
                missing += await nodes
        report.fetched_bytes = fetcher.done
    failed = {download.sha256: fetched.errors[download.name] for download in downloads if download.name in fetched.errors}
    for name, (model, nbytes) in plan.fetching.items():
        if model.sha256 in failed:
            missing.append(Missing("model", name, failed[model.sha256].message, nbytes))
        else:
            report.fetched.append(name)
            plan.linking.append(model)
    missing += await asyncio.to_thread(_link, plan, report, store)
    left = {entry.name for entry in missing}
    report.installed = [node.name for node, _ in plan.installing if node.name not in left]
    store.hashes.save()
    if missing:
        raise incomplete(spec, missing, sum(entry.nbytes or 0 for entry in missing))


async def _install(nodes: Sequence[tuple[CustomNode, str]], home: Path, pool: SourcePool, environment: Mapping[str, str]) -> list[Missing]:
    """Install custom nodes and return those that could not be."""
    gate = asyncio.Semaphore(PARALLEL)

    async def install(node: CustomNode, reason: str) -> Missing | None:
        folder = home / "custom_nodes" / node.name
        try:
            async with gate:
                await install_node(node, folder, pool, environment)
                left = await asyncio.to_thread(check_node, node, folder)
        except YggdrasillError as error:
            return Missing("node", node.name, f"{reason}. {error.message}")
        return None if left is None else Missing("node", node.name, left)

    return [entry for entry in await asyncio.gather(*(install(*each) for each in nodes)) if entry is not None]


def _link(plan: Plan, report: VerifyReport, store: ModelCache) -> list[Missing]:
    """Link cached models and return those that could not be."""
    missing = []
    for model in plan.linking:
        digest = model.sha256 or ""
        try:
            store.link(digest, plan.models, model.target)
            store.hashes.remember(plan.models / model.target, digest)
            report.linked.append(model.target)
        except LinkRefused as error:
            missing.append(Missing("model", model.target, str(error), model.size_bytes))
    return missing


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
