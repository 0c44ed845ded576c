"""Placing of a project that is already built: parts that a registry places on endpoints become remote parts, the others are unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation.container import Container
from yggdrasill.foundation.contract import Runnable
from yggdrasill.foundation.graph import Graph
from yggdrasill.foundation.kinds import detect_kind
from yggdrasill.pipeline.dag import Dag
from yggdrasill.remote.deployment import state_without_checkpoint
from yggdrasill.remote.placement import Placement, ProjectPart
from yggdrasill.remote.proxies import make_proxy
from yggdrasill.remote.remote_part import RemotePart
from yggdrasill.world.world import World

if TYPE_CHECKING:
    from yggdrasill.remote.endpoints import EndpointRegistry

__all__ = ["place"]


def place(project: Any, registry: EndpointRegistry) -> Any:
    """Return a copy of a graph, pipeline, stage or world with its placed parts remote; the other parts are the same objects.

    A placed part is deployed with its config and the state of blocks that name no checkpoint. A project that is placed as a whole, by
    its id, becomes a remote part.

    Raises:
        InvalidArgument: not a project, or a stateful block is shared with a part that runs in another place.
        InvalidConfig: an ambiguous key.
        UnknownBlockType, PayloadTooLarge, EndpointUnreachable, InvalidEdge
    """
    if not isinstance(project, Container) and not _is_leaf(project):
        raise InvalidArgument(f"expected a graph, pipeline, stage or world to place, got {type(project).__name__}")
    root = ProjectPart((project.id,), None)
    parts = [part for part in ProjectPart.of_config((), project.to_config()).walk() if part.path]
    placements = registry.placements_of([root, *parts], project.id)
    project_placement = placements.pop(root.path, None) if root.path not in {part.path for part in parts} else None
    if project_placement is None and _is_leaf(project):
        project_placement = registry.default
    placer = _Placer(registry, placements)
    placed = placer.part(project, (), project_placement)
    placer.check_shared_state()
    return placed


def _is_leaf(part: Any) -> bool:
    """Whether a part is placed whole or not at all: a graph, or a runnable of another kind that endpoints serve."""
    if isinstance(part, (Graph, Container, RemotePart)):
        return isinstance(part, Graph)
    kind = detect_kind(part.to_config()) if isinstance(part, Runnable) else None
    return kind is not None and kind.servable


class _Placer:
    def __init__(self, registry: EndpointRegistry, placements: Mapping[tuple[str, ...], Placement]) -> None:
        self._registry = registry
        self._placements = placements
        #: Where each stateful block runs: the name of the placed part, or empty for this process.
        self._locations: dict[int, set[str]] = {}

    def part(self, child: Any, path: tuple[str, ...], inherited: Placement | None) -> Any:
        """Return the placed form of ``child``: a remote part, a copy with remote parts inside, or ``child``."""
        placement = self._placements.get(path, inherited)
        is_leaf = _is_leaf(child)
        if not isinstance(child, Container) and not is_leaf:
            return child
        if placement is None and is_leaf:
            placement = self._registry.default
        split = any(other[: len(path)] == path and other != path and found != placement for other, found in self._placements.items())
        if placement is not None and not placement.is_local and (is_leaf or not split):
            self._record(child, "/".join(path) or child.id)
            return self._proxy(child, path, placement)
        if is_leaf:
            self._record(child, "")
            return child
        children = {child_id: self.part(below, (*path, child_id), placement) for child_id, below in child.children.items()}
        changed = {child_id: below for child_id, below in children.items() if below is not child.children[child_id]}
        return cast("Dag | World", child).with_children(changed) if changed else child

    def _proxy(self, child: Any, path: tuple[str, ...], placement: Placement) -> Any:
        return make_proxy(
            self._registry,
            placement,
            child.id,
            child.to_config(),
            state=state_without_checkpoint(child) if isinstance(child, Container) else None,
            fallback=lambda: child,
        )

    def _record(self, part: Any, location: str) -> None:
        for block in part.blocks() if isinstance(part, Container) else ():
            if block.stateful:
                self._locations.setdefault(id(block), set()).add(location)

    def check_shared_state(self) -> None:
        """Raise `InvalidArgument` if parts that now run in different places shared a stateful block."""
        for locations in self._locations.values():
            if len(locations) > 1:
                names = ", ".join(repr(location) if location else "this process" for location in sorted(locations))
                raise InvalidArgument(
                    f"{names} share a block that keeps state between calls, which can live in one place only; place them together, as one pipeline"
                )
