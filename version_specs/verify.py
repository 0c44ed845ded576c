"""Verification of a version on this machine: carrying out the plan of what is missing.

What cannot be had is known before a byte of a model is fetched, as far as sources answer at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yggdrasill.errors import YggdrasillError
from yggdrasill.remote.public_hosts import allows_private
from yggdrasill.version_specs.cache import LinkRefused, ModelCache
from yggdrasill.version_specs.fetch import PARALLEL, Download, Fetcher
from yggdrasill.version_specs.model import CustomNode, VersionSpec
from yggdrasill.version_specs.nodes import check_node, install_node
from yggdrasill.version_specs.plan import Missing, Plan, Progress, VerifyOptions, incomplete, plan_version, ticking
from yggdrasill.version_specs.sources import SourcePool

__all__ = ["VerifyReport", "verify_version"]


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
