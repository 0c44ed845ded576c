"""What a served graph takes and gives, fetched once, and whether its endpoint computes like this process."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from yggdrasill.errors import BuildMismatch, ProtocolMismatch
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.retry import Retry

__all__ = ["RemoteContract", "check_build", "fetch_contract", "other_build"]


@dataclass(frozen=True)
class RemoteContract:
    """A served graph's side of the one contract. ``inputs`` and ``outputs`` are spec entries with dtype and optional."""

    graph_id: str
    kind: str
    hash: str
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    deterministic: bool = False
    stateful: bool = False
    stage: Mapping[str, Any] | None = None
    world: Mapping[str, Any] | None = None
    #: Whether a caller that knows the result for the same inputs need not call again.
    reusable: bool = False

    @classmethod
    def of(cls, document: Mapping[str, Any], endpoint: str) -> RemoteContract:
        """From an endpoint's JSON.

        Raises:
            ProtocolMismatch: it is no contract.
        """
        texts = [document.get(key) for key in ("graph_id", "kind", "hash")]
        sides = [document.get("inputs"), document.get("outputs")]
        if not all(isinstance(text, str) for text in texts) or not all(map(_is_spec, sides)):
            raise ProtocolMismatch(
                f"endpoint {endpoint!r} gave a contract without id, kind, hash, inputs or outputs; install the same version on both sides",
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
        )

    def spec(self, side: str, include_dtype: bool) -> list[dict[str, Any]]:
        """Copies of the entries of ``inputs`` or ``outputs``, as a graph's spec gives them."""
        entries = self.inputs if side == "inputs" else self.outputs
        hidden = () if include_dtype else ("dtype", "optional", "aggregation", "comfy_type")
        return [{key: value for key, value in entry.items() if key not in hidden} for entry in entries]


def _is_spec(side: object) -> bool:
    return isinstance(side, list) and all(isinstance(entry, Mapping) and isinstance(entry.get("name"), str) for entry in side)


async def fetch_contract(client: EndpointClient, graph_id: str, retry: Retry, *, strict_build: bool = False) -> RemoteContract:
    """The contract of a served graph, after the endpoint's torch build was compared with this process's.

    Raises:
        UnknownGraph, EndpointUnreachable, AccessDenied, ProtocolMismatch; BuildMismatch if ``strict_build``
    """
    await check_build(client, retry, strict=strict_build)
    return RemoteContract.of(await retry.persist(lambda: client.contract(graph_id)), client.name)


async def check_build(client: EndpointClient, retry: Retry, *, strict: bool) -> None:
    """Compare torch builds, once per client: another one is an error if ``strict``, else a warning."""
    if client.facts is None:
        client.facts = await retry.persist(client.capabilities)
        problem = _difference(client)
        if problem is not None and not strict:
            warnings.warn(f"BuildMismatch: {problem.message}", RuntimeWarning, stacklevel=2)
    if strict and (problem := _difference(client)) is not None:
        raise problem


def _difference(client: EndpointClient) -> BuildMismatch | None:
    there = (client.facts or {}).get("torch")
    other = other_build(there)
    if not other or not isinstance(there, Mapping):
        return None
    return BuildMismatch(
        f"endpoint {client.name!r} at {client.url} computes with another torch build ({other}), so results may differ in the last "
        "bits; install the same build on both sides",
        endpoint=client.name,
        there={name: str(theirs) for name, theirs in there.items() if theirs is not None},
        here=_own_build(),
    )


def other_build(there: object) -> str:
    """How a torch build, as capabilities tell it, differs from this process's, in words; empty if it does not, as far as both are known."""
    known = there if isinstance(there, Mapping) else {}
    here = {name: own for name, own in _own_build().items() if own is not None and known.get(name) is not None}
    return "; ".join(f"{name} {known[name]} there, {own} here" for name, own in here.items() if str(known[name]) != own)


def _own_build() -> dict[str, str | None]:
    """This process's build, from the package's metadata as long as torch itself is not loaded."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        return {"version": str(torch.__version__), "git": torch.version.git_version}
    try:
        return {"version": version("torch")}
    except PackageNotFoundError:
        return {}
