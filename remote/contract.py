"""Contract of a deployment, and the comparison of its endpoint's torch build with this process's."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yggdrasill.errors import BuildMismatch, ProtocolMismatch
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.retry import Retry

__all__ = ["RemoteContract", "check_build", "fetch_contract", "other_build"]

_ASSIGNMENT = re.compile(r"""^(__version__|git_version)\b[^=\n]*=\s*['"]([^'"\n]+)['"]""", re.MULTILINE)


@dataclass(frozen=True)
class RemoteContract:
    """The inputs and outputs of a deployment as spec entries with dtype and optional."""

    graph_id: str
    kind: str
    hash: str
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    deterministic: bool = False
    stateful: bool = False
    stage: Mapping[str, Any] | None = None
    world: Mapping[str, Any] | None = None
    #: Whether a caller may reuse a known result for equal inputs.
    reusable: bool = False
    #: Whether the endpoint refuses a call that names another hash with If-Match.
    conditional: bool = False

    @classmethod
    def of(cls, document: Mapping[str, Any], endpoint: str) -> RemoteContract:
        """Parse an endpoint's JSON.

        Raises:
            ProtocolMismatch: it is not a contract.
        """
        texts = [document.get(key) for key in ("graph_id", "kind", "hash")]
        sides = [document.get("inputs"), document.get("outputs")]
        if not all(isinstance(text, str) for text in texts) or not all(map(_is_spec, sides)):
            raise ProtocolMismatch(
                f"endpoint {endpoint!r} returned a contract without id, kind, hash, inputs or outputs; install the same version on both sides",
                endpoint=endpoint,
            )
        graph_id, kind, graph_hash = map(str, texts)
        return cls(
            graph_id,
            kind,
            graph_hash,
            list(sides[0] or ()),
            list(sides[1] or ()),
            document.get("deterministic") is True,
            document.get("stateful") is True,
            document.get("stage"),
            document.get("world"),
            document.get("reusable") is True,
            document.get("conditional") is True,
        )

    def spec(self, side: str, include_dtype: bool) -> list[dict[str, Any]]:
        """Return copies of the entries of ``inputs`` or ``outputs``, in the form of a graph's spec."""
        entries = self.inputs if side == "inputs" else self.outputs
        hidden = () if include_dtype else ("dtype", "optional", "aggregation", "comfy_type")
        return [{key: value for key, value in entry.items() if key not in hidden} for entry in entries]


def _is_spec(side: object) -> bool:
    return isinstance(side, list) and all(isinstance(entry, Mapping) and isinstance(entry.get("name"), str) for entry in side)


async def fetch_contract(client: EndpointClient, graph_id: str, retry: Retry, *, strict_build: bool = False) -> RemoteContract:
    """Return the contract of a deployment, after comparing the endpoint's torch build with this process's.

    Raises:
        UnknownGraph, EndpointUnreachable, AccessDenied, ProtocolMismatch; BuildMismatch if ``strict_build``
    """
    await check_build(client, retry, strict=strict_build)
    return RemoteContract.of(await retry.persist(lambda: client.contract(graph_id)), client.name)


async def check_build(client: EndpointClient, retry: Retry, *, strict: bool) -> None:
    """Compare torch builds, once per client. A difference is an error if ``strict``, otherwise a warning."""
    if client.facts is None:
        client.facts = await retry.persist(client.capabilities)
        problem = _difference(client)
        if problem is not None and not strict:
            warnings.warn(f"BuildMismatch: {problem.message}", RuntimeWarning, stacklevel=2)
    if strict and (problem := _difference(client)) is not None:
        raise problem


def _difference(client: EndpointClient) -> BuildMismatch | None:
    remote_build = (client.facts or {}).get("torch")
    other = other_build(remote_build)
    if not other or not isinstance(remote_build, Mapping):
        return None
    return BuildMismatch(
        f"endpoint {client.name!r} at {client.url} uses another torch build ({other}), so results may differ in the last "
        "bits; install the same build on both sides",
        endpoint=client.name,
        there={name: str(value) for name, value in remote_build.items() if value is not None},
        here=_own_build(),
    )


def other_build(remote_build: object) -> str:
    """Describe how a torch build, as in capabilities, differs from this process's; empty if equal as far as both are known."""
    remote = _with_release(remote_build if isinstance(remote_build, Mapping) else {})
    local = {name: value for name, value in _own_build().items() if value is not None and remote.get(name) is not None}
    return "; ".join(f"{name} {remote[name]} on the endpoint, {value} here" for name, value in local.items() if str(remote[name]) != value)


def _with_release(build: Mapping[str, Any]) -> dict[str, Any]:
    """Return a build with its release: the version without the label of a build, such as ``+cu130``."""
    known = build.get("version")
    return dict(build) if known is None else {**build, "release": _release(str(known))}


def _release(text: str) -> str:
    return text.partition("+")[0]


def _own_build() -> dict[str, str | None]:
    """Return this process's build: that of the imported torch, else that of the installed package, which is not imported for it."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        return {"version": str(torch.__version__), "git": torch.version.git_version}
    return _installed_build()


@cache
def _installed_build() -> dict[str, str | None]:
    """Return the build in the package's ``version.py``; if that cannot be read, only the release, because metadata omits the label."""
    try:
        found = find_spec("torch")
        folders = (found.submodule_search_locations if found else None) or ()
        words = dict(_ASSIGNMENT.findall(Path(folders[0], "version.py").read_text(encoding="utf-8"))) if folders else {}
    except (OSError, ValueError):
        words = {}
    if "__version__" in words:
        return {"version": words["__version__"], "git": words.get("git_version")}
    try:
        return {"release": _release(version("torch"))}
    except PackageNotFoundError:
        return {}
