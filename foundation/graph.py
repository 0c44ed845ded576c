"""The graph: blocks in nodes, linked port to port, cycles allowed. The first level that runs.

The graph holds structure and answers queries. `compile` makes its program, the executor runs it, `saving` writes files,
`validation` and `roles` hold the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from yggdrasill.errors import InvalidArgument, format_options, unknown_message
from yggdrasill.executor.loop import loop_count
from yggdrasill.executor.loop import run as run_executor
from yggdrasill.foundation import roles
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.checkpoints import read_state
from yggdrasill.foundation.config import BuildOptions
from yggdrasill.foundation.container import ConnectedContainer, check_name
from yggdrasill.foundation.edges import Edge, Interface, check_edge
from yggdrasill.foundation.kinds import Kind, register_kind
from yggdrasill.foundation.loading import StateLoader
from yggdrasill.foundation.node import Node
from yggdrasill.foundation.pool import ReusePool, absolute_references, identify
from yggdrasill.foundation.ports import PortAggregation
from yggdrasill.foundation.registry import BlockFactory, BlockRegistry
from yggdrasill.foundation.saving import Persistent
from yggdrasill.foundation.validation import ValidationResult, check_edges, check_exposures, check_inputs, check_reachability

if TYPE_CHECKING:
    from typing_extensions import Self


__all__ = ["GRAPH_KINDS", "Graph"]

GRAPH_KINDS = ("diffusion", "llm", "vlm", "data", "generic")


class Graph(ConnectedContainer, Persistent):
    """One whole task: nodes, edges, exposed ports, metadata.

    ``registry`` builds blocks by type (default: the global one); ``pool`` shares blocks of one model (default: the pool of
    the process; ``ReusePool.off()`` for copies). ``metadata["num_loop_steps"]`` is how often cycles run and
    ``metadata["cycle_order"]`` a list of node ids that replaces the sorted order inside cycles.
    """

    level: ClassVar[str] = "graph"
    child_word: ClassVar[str] = "node"
    child_id_field: ClassVar[str] = "node_id"
    schema_version: ClassVar[str] = "1.0"
    input_hint: str = "An input is named by its external key or by (node_id, port)."

    def __init__(
        self,
        graph_id: str = "graph",
        *,
        graph_kind: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        registry: BlockRegistry | None = None,
        pool: ReusePool | None = None,
    ) -> None:
        super().__init__()
        self.graph_id = check_name("graph_id", graph_id)
        if graph_kind is not None and graph_kind not in GRAPH_KINDS:
            raise InvalidArgument(f"Unknown graph_kind {graph_kind!r}. Available: {', '.join(GRAPH_KINDS)}.")
        self.graph_kind = graph_kind
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.registry = registry if registry is not None else BlockRegistry.global_registry()
        self.pool = pool if pool is not None else ReusePool.shared()
        self.auto_wired: set[Edge] = set()
        self._interfaces: dict[str, Interface] = {}

    def __repr__(self) -> str:
        return f"<Graph {self.graph_id!r}: {len(self.nodes)} nodes, {len(self._edge_table.edges)} edges>"

    @property
    def id(self) -> str:
        """The graph id."""
        return self.graph_id

    # -- nodes --------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> dict[str, Node]:
        """The nodes by id."""
        return self._children

    @property
    def node_ids(self) -> list[str]:
        """The node ids in insertion order."""
        return list(self._children)

    def get_node(self, node_id: str) -> Node:
        """Return the node of that id.

        Raises:
            UnknownName: (a KeyError) the graph does not have it.
        """
        node: Node = self._child(node_id)
        return node

    def interface(self, child_id: str) -> Interface:
        """Return the ports of a node's block."""
        known = self._interfaces.get(child_id)
        if known is None:
            known = self._interfaces[child_id] = Interface.of_block(self.get_node(child_id).block)
        return known

    def add_node(
        self,
        node: str | Node | AbstractBaseBlock,
        block_type: str | None = None,
        *,
        node_id: str | None = None,
        config: Mapping[str, Any] | None = None,
        block_id: str | None = None,
        pretrained: Mapping[str, Any] | str | Path | None = None,
        registry: BlockRegistry | None = None,
        auto_connect: bool = True,
        trainable: bool = True,
    ) -> str:
        """Add a node and return its id.

        ``add_node(node_id, block_type, config=...)`` builds the block; ``add_node(block_type, node_id=...)`` does so with
        a generated id; ``add_node(block)`` takes a block as it is; ``add_node(Node(...))`` takes no other argument and is
        not wired automatically. ``pretrained`` is a state dict or a file, loaded non-strictly.

        Raises:
            DuplicateName, InvalidArgument, UnknownBlockType, MissingFile, InvalidCheckpoint
        """
        if isinstance(node, Node):
            if any(extra is not None for extra in (block_type, node_id, config, block_id, pretrained, registry)) or not trainable:
                raise InvalidArgument(
                    f"add_node(Node({node.node_id!r}, ...)) takes no other argument; set them on the Node or pass a block type"
                )
            return self._place(node, auto_connect=False)
        if isinstance(node, AbstractBaseBlock):
            if any(extra is not None for extra in (block_type, config, block_id, registry)):
                raise InvalidArgument(f"add_node(block) takes no block type or config; {node!r} has its own")
            block, new_id = node, self._new_id(node_id, node.block_type)
        else:
            if block_type is not None and node_id is not None:
                raise InvalidArgument(f"add_node got two node ids, {node!r} and {node_id!r}")
            new_id = self._new_id(node_id, node) if block_type is None else check_name("node_id", node, self._children)
            given_type, blocks = block_type or node, registry if registry is not None else self.registry
            factory = blocks.get(given_type)
            config = absolute_references(factory, config or {})
            build = self._builder(block_id or new_id, given_type, config, blocks, factory)
            # given weights make a block of its own, whatever model the config names
            identity = None if pretrained is not None else identify(factory, given_type, config)
            block = self.pool.acquire(identity, build, self)
        if pretrained is not None:
            block.load_state_dict(pretrained if isinstance(pretrained, Mapping) else read_state(pretrained), strict=False)
        defaults: Any = (config or {}).get("defaults")
        return self._place(Node(new_id, block, trainable, defaults), auto_connect)

    def _new_id(self, node_id: str | None, block_type: str) -> str:
        if node_id is not None:
            return check_name("node_id", node_id, self._children)
        return self._free_id(check_name("block type", block_type).replace("/", "_"))

    @staticmethod
    def _builder(
        block_id: str, block_type: str, config: Mapping[str, Any], registry: BlockRegistry, factory: BlockFactory
    ) -> Callable[[], AbstractBaseBlock]:
        # defaults belong to the node: a block that other nodes may use does not carry those of the first
        own = {key: value for key, value in config.items() if key != "defaults"}

        def build() -> AbstractBaseBlock:
            block = registry.build({**own, "block_type": block_type, "block_id": block_id}, factory)
            reference = own.get("checkpoint_ref") or own.get("checkpoint_path")
            if isinstance(reference, str) and own.get("backend") != "api":
                block.load_reference(reference)
            return block

        return build

    def _place(self, node: Node, auto_connect: bool) -> str:
        check_name("node_id", node.node_id, self._children)
        ReusePool.use(node.block, self)
        self._interfaces[node.node_id] = Interface.of_block(node.block)
        self._add_child(node.node_id, node)
        if auto_connect:
            roles.apply_auto_connect(self, node.node_id)
        return node.node_id

    def remove_node(self, node_id: str) -> None:
        """Remove a node with its edges and exposed ports."""
        block = self.get_node(node_id).block
        self._remove_child(node_id)
        self._release(block)
        self._interfaces.pop(node_id, None)
        self.auto_wired &= set(self._edge_table.edges)

    def replace_block(self, node_id: str, block: AbstractBaseBlock) -> None:
        """Put another block into a node, such as an adapter around the old one. Id, defaults, trainable flag and edges stay.

        Raises:
            UnknownName: no such node. InvalidArgument: not a block, or an exposed port that it does not have.
            InvalidEdge: an edge of the node does not fit its ports. A refused block changes nothing.
        """
        changed = replace(self.get_node(node_id), block=block)
        interface = Interface.of_block(block)
        interfaces = {other: self.interface(other) for edge in self._edges_of(node_id) for other in (edge.source_node, edge.target_node)}
        interfaces[node_id] = interface
        for edge in self._edges_of(node_id):
            check_edge(edge, self.child_word, interfaces)
        for kind, entries, ports in (
            ("input", self.exposed_inputs, interface.inputs),
            ("output", self.exposed_outputs, interface.outputs),
        ):
            for entry in entries:
                if entry.node_id == node_id and entry.port_name not in ports:
                    raise InvalidArgument(
                        f"block {block!r} has no {kind} {entry.port_name!r}, which graph {self.graph_id!r} exposes at node {node_id!r}. "
                        f"Available: {format_options(ports, near=entry.port_name)}."
                    )
        old = self.get_node(node_id).block
        self._children[node_id], self._interfaces[node_id] = changed, interface
        ReusePool.use(block, self)
        self._release(old)
        self.execution_version += 1

    def _release(self, block: AbstractBaseBlock) -> None:
        if all(node.block is not block for node in self.nodes.values()):
            ReusePool.release(block, self)

    def _edges_of(self, node_id: str) -> list[Edge]:
        return [*self.get_edges_in(node_id), *self.get_edges_out(node_id)]

    def set_trainable(self, child_id: str, trainable: bool) -> None:
        """Set whether `trainable_parameters` covers a node."""
        self._children[child_id] = replace(self.get_node(child_id), trainable=bool(trainable))

    def is_trainable(self, child_id: str) -> bool:
        """Return the node's trainable flag."""
        return self.get_node(child_id).trainable

    # -- edges --------------------------------------------------------------------------------------------------

    def new_edge(self, source: str, source_port: str, target: str, target_port: str) -> Edge:
        """Return an edge of a graph."""
        return Edge(source, source_port, target, target_port)

    def add_edge(self, edge: Edge) -> None:
        """Link two nodes; a duplicate changes nothing. Edges that automatic wiring made into the same port are removed if it
        takes one value.

        Raises:
            InvalidEdge: (a ValueError) a missing node or port, a wrong direction, or types that do not fit.
        """
        if not isinstance(edge, Edge):
            raise InvalidArgument(f"add_edge takes an Edge(source_node, source_port, target_node, target_port), got {edge!r}")
        self._add_edge(edge)
        self.auto_wired.discard(edge)
        if self.interface(edge.target_node).inputs[edge.target_port].aggregation is PortAggregation.SINGLE:
            for other in self.edges_into(edge.target_node, edge.target_port):
                if other in self.auto_wired:
                    self.remove_edge(other)

    def add_auto_edge(self, edge: Edge) -> None:
        """Add an edge for automatic wiring: an explicit edge displaces it.

        Raises:
            InvalidEdge: as `add_edge`.
        """
        self._add_edge(edge)
        self.auto_wired.add(edge)

    def remove_edge(self, edge: Edge) -> None:
        """Remove an edge."""
        super().remove_edge(edge)
        self.auto_wired.discard(edge)

    # -- running ------------------------------------------------------------------------------------------------

    def validate(self, strict: bool = True, deep: bool = False) -> ValidationResult:
        """Check the structure; see `ValidationResult`. ``deep`` is for the levels above: a graph contains no containers.

        Raises:
            InvalidStructure: (a ValueError) ``strict`` and there are errors.
        """
        result = ValidationResult()
        result.errors += check_edges(self)
        result.errors += check_exposures(self)
        result.errors += self._check_metadata()
        result.errors += check_inputs(self, {node_id: node.defaults for node_id, node in self.nodes.items()})
        result.warnings += check_reachability(self)
        if strict:
            result.raise_if_invalid(f"graph {self.graph_id!r}")
        return result

    def run(self, inputs: Mapping[Any, Any] | None = None, **options: Any) -> dict[str, Any]:
        """Run the graph; options and errors as `yggdrasill.executor.run`."""
        return run_executor(self, inputs, **options)

    def _order_cycle(self, ids: list[str]) -> list[str]:
        place = {node_id: i for i, node_id in enumerate(self.structure_key()[1])}
        return sorted(ids, key=lambda node_id: (place.get(node_id, len(place)), node_id))

    def structure_key(self) -> tuple[int, tuple[str, ...]]:
        """Return the version and the order of nodes in cycles.

        Raises:
            InvalidArgument: ``metadata["cycle_order"]`` is not a list of node ids.
        """
        order = self.metadata.get("cycle_order")
        if not order:
            return self.execution_version, ()
        if not isinstance(order, (list, tuple)) or not all(isinstance(node_id, str) for node_id in order):
            raise InvalidArgument(f"graph {self.graph_id!r}: metadata 'cycle_order' must be a list of node ids, got {order!r}")
        return self.execution_version, tuple(order)

    def _check_metadata(self) -> Iterator[str]:
        for node_id in self.structure_key()[1]:
            if node_id not in self._children:
                yield f"metadata 'cycle_order': {unknown_message('node', node_id, self._children)}"
        try:
            loop_count(None, self.metadata)
        except InvalidArgument as error:
            yield f"metadata: {error.message}"

    # -- state and parameters -----------------------------------------------------------------------------------

    def _blocks(self, *, trainable_only: bool) -> Iterator[AbstractBaseBlock]:
        for node in self.nodes.values():
            if not trainable_only or node.trainable:
                yield node.block

    def walk_nodes(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Graph, Node]]:
        """Yield every node with its path."""
        for node_id, node in self.nodes.items():
            yield (*path, node_id), self, node

    def _assign_state(self, state: Any, path: tuple[str, ...], load: StateLoader, strict: bool) -> None:
        required = state is not None
        state = {} if state is None else state
        self._check_state_ids(state, path, strict)
        for node_id in self.nodes:
            load.add(self, node_id, state.get(node_id), f"node {'/'.join((*path, node_id))!r}", required=required)

    def _become(self, built: Self) -> None:
        super()._become(built)
        for node in self.nodes.values():
            ReusePool.use(node.block, self)

    # -- config -------------------------------------------------------------------------------------------------

    def to_config(self) -> dict[str, Any]:
        """Return the structure as JSON values, `from_config`'s inverse; weights are in `state_dict`."""
        from yggdrasill.foundation.graph_config import graph_to_config

        return graph_to_config(self)

    @classmethod
    def _build(cls, config: Mapping[str, Any], options: BuildOptions, validate: bool = False) -> Self:
        from yggdrasill.foundation.graph_config import graph_from_config

        return graph_from_config(cls, config, options, validate)


register_kind(
    Kind(
        "graph",
        load_class=lambda: Graph,
        build=Graph._build,
        marks=("nodes",),
        drawing="nodes",
        run_options=frozenset({"num_loop_steps", "dry_run", "max_workers"}),
    )
)
