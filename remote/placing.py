"""Placing a project that is built already: the parts that a registry places elsewhere become proxies, the rest stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation.container import Container
from yggdrasill.foundation.graph import Graph
from yggdrasill.pipeline.dag import Dag
from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.remote.deployment import state_without_checkpoint
from yggdrasill.remote.placement import Placement, ProjectPart
from yggdrasill.remote.proxies import make_proxy
from yggdrasill.world.world import World

if TYPE_CHECKING:
    from yggdrasill.remote.endpoints import EndpointRegistry

__all__ = ["place"]


def place(project: Any, registry: EndpointRegistry) -> Any:
    """A copy of a graph, pipeline, stage or world with its placed parts remote; the other parts are the same objects.

    A placed part takes along its config and the state of blocks that name no checkpoint. A project that is placed whole, by
    its own id, becomes a proxy itself.

    Raises:
        InvalidArgument: no project, or a block that keeps state is shared with a part that runs elsewhere.
        InvalidConfig: an ambiguous key. UnknownBlockType, PayloadTooLarge, EndpointUnreachable, InvalidEdge
    """
    if not isinstance(project, (Graph, ComfyGraph, Dag, World)):
        raise InvalidArgument(f"a graph, pipeline, stage or world can be placed, not {type(project).__name__}")
    root = ProjectPart((project.id,), None)
    parts = [part for part in ProjectPart.of_config((), project.to_config()).walk() if part.path]
    placements = registry.placements_of([root, *parts], project.id)
    whole = placements.pop(root.path, None) if root.path not in {part.path for part in parts} else None
    if whole is None and isinstance(project, (Graph, ComfyGraph)):
        whole = registry.default
    placer = _Placer(registry, placements)
    placed = placer.part(project, (), whole)
    placer.check_shared_state()
    return placed


class _Placer:
    def __init__(self, registry: EndpointRegistry, placements: Mapping[tuple[str, ...], Placement]) -> None:
        self._registry = registry
        self._placements = placements
        #: Where each block that keeps state runs: the placed part it belongs to, or here.
        self._homes: dict[int, set[str]] = {}

    def part(self, child: Any, path: tuple[str, ...], around: Placement | None) -> Any:
        """What stands for ``child`` after placing: a proxy, a copy with proxies inside, or itself."""
        placement = self._placements.get(path, around)
        is_leaf = isinstance(child, (Graph, ComfyGraph))
        if not isinstance(child, Container) and not is_leaf:
            return child
        if placement is None and is_leaf:
            placement = self._registry.default
        apart = any(other[: len(path)] == path and other != path and found != placement for other, found in self._placements.items())
        if placement is not None and not placement.is_local and (is_leaf or not apart):
            self._settle(child, "/".join(path) or child.id)
            return self._proxy(child, path, placement)
        if is_leaf:
            self._settle(child, "")
            return child
        children = {child_id: self.part(below, (*path, child_id), placement) for child_id, below in child._children.items()}
        changed = {child_id: below for child_id, below in children.items() if below is not child._children[child_id]}
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

    def _settle(self, part: Container | ComfyGraph, home: str) -> None:
        for block in part.blocks() if isinstance(part, Container) else ():
            if block.stateful:
                self._homes.setdefault(id(block), set()).add(home)

    def check_shared_state(self) -> None:
        """Raise `InvalidArgument` if a block that keeps state was shared by parts that now run apart."""
        for homes in self._homes.values():
            if len(homes) > 1:
                names = ", ".join(repr(home) if home else "this process" for home in sorted(homes))
                raise InvalidArgument(
                    f"{names} share a block that keeps state between calls, which lives in one place; place them together, as one pipeline"
                )
