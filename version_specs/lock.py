"""Locking: what is not exact in a spec is made exact, so that every machine gets the same files."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from yggdrasill.errors import YggdrasillError
from yggdrasill.version_specs.cache import ModelCache
from yggdrasill.version_specs.fetch import Download, Fetcher
from yggdrasill.version_specs.model import COMMIT, CustomNode, ModelFile, VersionSpec
from yggdrasill.version_specs.nodes import remote_commit
from yggdrasill.version_specs.plan import Missing, Progress, incomplete, ticking
from yggdrasill.version_specs.sources import Facts, SourcePool

__all__ = ["COMFY_REPOSITORY", "lock_spec"]

COMFY_REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
_RELEASE = re.compile(r"v?\d+(\.\d+)+")


async def lock_spec(
    spec: VersionSpec,
    store: ModelCache,
    pool: SourcePool,
    *,
    progress: Progress | None = None,
    comfy_repository: str = COMFY_REPOSITORY,
) -> VersionSpec:
    """Return a spec in which everything is exact: models with sha256 and size, custom nodes and ComfyUI at commits instead of branches.

    Models whose hash no hub reports are fetched into the cache. Tags of releases of ComfyUI and versions of the registry stay.

    Raises:
        VersionIncomplete: something has no source, or its source fails; ``details["missing"]`` lists all of it.
    """
    missing: list[Missing] = []
    definition = spec.definition
    facts = dict(await asyncio.gather(*(_facts(spec, model, pool, missing) for model in definition.models if _is_open(model))))
    failed = {entry.name for entry in missing}
    downloads = [
        Download(model.target, spec.sources_of(model), None, facts[model.target].nbytes)
        for model in definition.models
        if model.sha256 is None and facts[model.target].sha256 is None and model.target not in failed
    ]
    nodes = await asyncio.gather(*(_lock_node(node, pool, missing) for node in definition.custom_nodes))
    base = definition.base_comfy_version
    if base is not None and not COMMIT.fullmatch(base) and not _RELEASE.fullmatch(base):
        try:
            base = await remote_commit(comfy_repository, base, allow_private=pool.allow_private)
        except YggdrasillError as error:
            missing.append(Missing("comfyui", str(base), error.message))
    total = sum(download.nbytes or 0 for download in downloads)
    with Fetcher(store, pool) as fetcher:
        async with ticking(progress, lambda: (fetcher.done, max(total, fetcher.done)), "fetching models without a hash"):
            fetched = await fetcher.fetch_all(downloads)
    missing += [Missing("model", name, error.message) for name, error in fetched.errors.items()]
    if missing:
        raise incomplete(spec, missing, 0)
    for name, digest in fetched.hashes.items():
        facts[name] = replace(facts[name], sha256=digest, nbytes=store.path(digest).stat().st_size)
    models = [_locked(model, facts.get(model.target)) for model in definition.models]
    changes = {"models": models, "custom_nodes": list(nodes), "base_comfy_version": base}
    return spec.model_copy(update={"definition": definition.model_copy(update=_changed(definition, changes))})


def _is_open(model: ModelFile) -> bool:
    return model.sha256 is None or model.size_bytes is None


async def _facts(spec: VersionSpec, model: ModelFile, pool: SourcePool, missing: list[Missing]) -> tuple[str, Facts]:
    """Return what the first source that answers reports about a model."""
    messages = []
    for url in spec.sources_of(model):
        try:
            return model.target, await pool.open(url).facts()
        except YggdrasillError as error:
            messages.append(error.message)
    if model.sha256 is None:
        missing.append(Missing("model", model.target, " ".join(messages) or "it has neither a sha256 nor a source"))
    return model.target, Facts(None)


def _locked(model: ModelFile, facts: Facts | None) -> ModelFile:
    if facts is None:
        return model
    changes = {"sha256": model.sha256 or facts.sha256, "size_bytes": facts.nbytes if model.size_bytes is None else model.size_bytes}
    return model.model_copy(update=_changed(model, changes))


async def _lock_node(node: CustomNode, pool: SourcePool, missing: list[Missing]) -> CustomNode:
    revision = node.revision
    if not node.repository or (revision is not None and COMMIT.fullmatch(revision)):
        return node
    try:
        commit = await remote_commit(node.repository, revision, allow_private=pool.allow_private)
    except YggdrasillError as error:
        missing.append(Missing("node", node.name, error.message))
        return node
    return node.model_copy(update={"git_ref": commit, **({"commit": commit} if node.commit else {})})


def _changed(part: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from those of a part, so that no other key is written."""
    return {name: value for name, value in values.items() if value != getattr(part, name)}
