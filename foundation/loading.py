"""States of whole containers: collecting them from blocks, and loading them into blocks without changing other graphs.

What goes where is settled and checked for the whole container before any block changes. A block of the reuse pool that a
graph outside the container uses, or that gets different states at different nodes, is replaced at those nodes by a variant:
a block of the same model with the loaded weights, shared in turn by every load of equal weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import CheckpointMismatch, InvalidConfig, YggdrasillError
from yggdrasill.foundation.checkpoints import StateShape, check_block_state, state_digest
from yggdrasill.foundation.pool import PoolEntry, identify

if TYPE_CHECKING:
    from yggdrasill.foundation.block import AbstractBaseBlock
    from yggdrasill.foundation.container import Container
    from yggdrasill.foundation.graph import Graph

__all__ = ["StateLoader", "collect_states", "model_key", "move_block"]


def collect_states(container: Container) -> dict[str, Any]:
    """Return the states of a container's blocks, nested by child ids; empty states are left out.

    Each block is written once: a model at the first node that uses it, any other block at its first node in each graph.
    Where a container has several variants of one model, every node of that model has its state, which keeps them apart.
    """
    places = list(container.walk_nodes())
    models: dict[Any, set[int]] = {}
    keys: dict[int, Any] = {}
    for _, _, node in places:
        key = keys.setdefault(id(node.block), model_key(node.block))
        if key is not None:
            models.setdefault(key, set()).add(id(node.block))
    states: dict[str, Any] = {}
    written: dict[Any, Any] = {}
    for path, graph, node in places:
        block, key = node.block, keys[id(node.block)]
        mark = (id(graph) if key is None else 0, id(block))
        if mark in written and (key is None or len(models[key]) == 1):
            continue
        state = written[mark] = written[mark] if mark in written else block.state_dict()
        if state:
            below = states
            for child_id in path[:-1]:
                below = below.setdefault(child_id, {})
            below[path[-1]] = state
    return states


def model_key(block: AbstractBaseBlock) -> Any:
    """Return what blocks of one model have in common whatever their weights, None for a block without a model."""
    entry: PoolEntry | None = block._pool_entry
    if entry is not None:
        identity = entry.identity
        return identity.block_type, identity.reference, identity.configuration
    if block.stateful:
        return None
    try:
        found = identify(type(block), block.block_type, block.config)
    except InvalidConfig:
        # a block that was built by hand, with objects in its config
        return None
    return None if found is None else (found.block_type, found.reference, found.configuration)


@dataclass(slots=True)
class _Place:
    """A node and the state meant for it."""

    graph: Graph
    node_id: str
    block: AbstractBaseBlock
    where: str
    state: Mapping[str, Any] | None
    required: bool


class StateLoader:
    """One load: `add` every node with the state meant for it, then `apply`.

    A node without a state takes that of another node of its block, or of its model. With ``strict`` every other node that
    has a state needs one; ``models_optional`` exempts nodes whose weights come from a reference.
    """

    def __init__(self, *, strict: bool, models_optional: bool = False) -> None:
        self._strict = strict
        self._models_optional = models_optional
        self._places: list[_Place] = []
        self._shapes: dict[int, StateShape] = {}
        self._digests: dict[int, tuple[Mapping[str, Any], str]] = {}

    def add(self, graph: Graph, node_id: str, state: Any, where: str, *, required: bool = True) -> None:
        """Note a node and the state meant for it, None if the checkpoint has none; ``where`` names the node in errors.

        Raises:
            CheckpointMismatch: the state does not fit the block.
        """
        block = graph.get_node(node_id).block
        if state is not None:
            check_block_state(block, state, where, strict=self._strict, expected=self._shape(block))
        self._places.append(_Place(graph, node_id, block, where, state, required))

    def apply(self) -> None:
        """Load the states, and replace blocks by variants where needed.

        Raises:
            CheckpointMismatch: a node lacks its state, one block got two states, or a block refuses its state.
        """
        self._complete()
        self._check_missing()
        by_block: dict[int, list[_Place]] = {}
        for place in self._places:
            by_block.setdefault(id(place.block), []).append(place)
        in_place: list[tuple[_Place, Mapping[str, Any], str]] = []
        replaced: list[tuple[_Place, AbstractBaseBlock]] = []
        for places in by_block.values():
            if places[0].block._pool_entry is None:
                in_place += self._plan_unshared(places)
            else:
                self._plan_shared(places, in_place, replaced)
        for place, state, digest in in_place:
            self._load(place.block, state, place.where)
            if digest:
                place.block._pool_entry.pool.restore(place.block, digest, state_digest(place.block.state_dict()))
        for place, block in replaced:
            place.graph.replace_block(place.node_id, block)

    # -- which state each node gets -----------------------------------------------------------------------------

    def _complete(self) -> None:
        """Give nodes without a state the state of another node of their block, or of their model, if there is only one."""
        by_block: dict[Any, list[Mapping[str, Any]]] = {}
        by_model: dict[Any, list[Mapping[str, Any]]] = {}
        keys = {id(place.block): self._group(place) for place in self._places}
        for place in self._places:
            if place.state is not None:
                by_block.setdefault(id(place.block), []).append(place.state)
                by_model.setdefault(keys[id(place.block)], []).append(place.state)
        for place in self._places:
            if place.state is None:
                found = by_block.get(id(place.block)) or by_model.get(keys[id(place.block)], [])
                if found and self._equal(found):
                    place.state = found[0]

    @staticmethod
    def _group(place: _Place) -> Any:
        key = model_key(place.block)
        if key is None:
            # nodes that shared a block before they were built without sharing have its id and config
            config = {name: value for name, value in place.block.config.items() if name != "defaults"}
            return id(place.graph), place.block.block_type, place.block.block_id, repr(config)
        return key

    def _check_missing(self) -> None:
        if not self._strict:
            return
        missing = [
            place
            for place in self._places
            if place.state is None
            and place.required
            and not (self._models_optional and model_key(place.block) is not None)
            and self._shape(place.block).shapes
        ]
        if missing:
            raise CheckpointMismatch(
                f"the checkpoint has no state for {', '.join(place.where for place in missing)}; "
                "it belongs to another structure, or is part of a larger one: load that, or load with strict=False to keep the present weights",
                missing=[place.where for place in missing],
            )

    # -- which block gets it ------------------------------------------------------------------------------------

    def _plan_unshared(self, places: list[_Place]) -> list[tuple[_Place, Mapping[str, Any], str]]:
        given = [place for place in places if place.state is not None]
        for place in given[1:]:
            if not self._equal([state for state in (given[0].state, place.state) if state is not None]):
                raise CheckpointMismatch(f"{place.where}: its state differs from that of {given[0].where}, but both use one block")
        return [(given[0], given[0].state, "")] if given and given[0].state is not None else []

    def _plan_shared(
        self, places: list[_Place], in_place: list[tuple[_Place, Mapping[str, Any], str]], replaced: list[tuple[_Place, AbstractBaseBlock]]
    ) -> None:
        block = places[0].block
        entry: PoolEntry = block._pool_entry
        groups: dict[str, tuple[Mapping[str, Any], list[_Place]]] = {}
        for place in places:
            if place.state is not None:
                state = self._whole(block, place.state)
                groups.setdefault(self._digest(state), (state, []))[1].append(place)
        alone = len(groups) == 1 and all(place.state is not None for place in places)
        for digest, (state, users) in groups.items():
            if _has(block, digest):
                continue
            live = entry.pool.find_variant(entry, digest)
            if alone and (live is None or not _has(live, digest)) and entry.pool.claim(block, self._graphs()):
                in_place.append((users[0], state, digest))
            else:
                variant = self._variant(entry, block, state, digest, users)
                replaced += [(place, variant) for place in users]

    def _variant(
        self, entry: PoolEntry, block: AbstractBaseBlock, state: Mapping[str, Any], digest: str, users: list[_Place]
    ) -> AbstractBaseBlock:
        def load(new: AbstractBaseBlock) -> str:
            self._load(new, state, users[0].where)
            _copy_modes(block, new)
            return state_digest(new.state_dict())

        return entry.pool.acquire_variant(entry, digest, load, lambda found: _has(found, digest), {place.graph for place in users})

    def _whole(self, block: AbstractBaseBlock, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """``state`` with the block's values for the keys that it lacks, as a load that is not strict leaves them."""
        if all(key in state for key in self._shape(block).shapes):
            return state
        return {**block.state_dict(), **state}

    def _load(self, block: AbstractBaseBlock, state: Mapping[str, Any], where: str) -> None:
        try:
            block.load_state_dict(state, self._strict)
        except YggdrasillError:
            raise
        except Exception as error:
            raise CheckpointMismatch(
                f"{where} ({block.block_type}) refuses its state: {type(error).__name__}: {error}; it belongs to another block"
            ) from error

    def _graphs(self) -> set[Graph]:
        return {place.graph for place in self._places}

    def _shape(self, block: AbstractBaseBlock) -> StateShape:
        if id(block) not in self._shapes:
            self._shapes[id(block)] = StateShape.of(block)
        return self._shapes[id(block)]

    def _digest(self, state: Mapping[str, Any]) -> str:
        if id(state) not in self._digests:
            self._digests[id(state)] = (state, state_digest(state))
        return self._digests[id(state)][1]

    def _equal(self, states: list[Mapping[str, Any]]) -> bool:
        return all(state is states[0] for state in states) or len({self._digest(state) for state in states}) == 1


def _has(block: AbstractBaseBlock, digest: str) -> bool:
    """Whether a shared block still has the weights of this digest; its users may have trained it since they were loaded."""
    entry: PoolEntry = block._pool_entry
    present = state_digest(block.state_dict())
    return present == digest or (entry.identity.state == digest and present == entry.content)


def _copy_modes(source: AbstractBaseBlock, target: AbstractBaseBlock) -> None:
    """Give a new variant the mode, the freeze and the device of the block it replaces."""
    target.train(source.training)
    target._set_frozen(source.frozen)
    devices = [[value.device for value in block.state_dict().values() if hasattr(value, "device")] for block in (source, target)]
    if devices[0] and devices[1] and devices[0][0] != devices[1][0]:
        move_block(target, devices[0][0])


def move_block(block: AbstractBaseBlock, device: Any) -> None:
    """Move a block to a device by its method ``to``; a block without one has its parts moved."""
    move = getattr(block, "to", None)
    if callable(move):
        move(device)
    else:
        for part in block.get_sub_blocks().values():
            move_block(part, device)
