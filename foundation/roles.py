"""Task-node roles and the wiring they suggest.

A role is the first part of a block type (``solver/ddim`` is a solver). The rules say which ports of two roles belong
together; `auto_edges` applies them to all nodes of a graph at once, so the order in which nodes were added does not
matter. Its policy where several candidates want one single-policy port:

- the source whose rule is nearer to the port wins: guidance before backbone into a solver's ``pred``, an adapter
  before a conditioner into a backbone's ``condition``; among equals the smallest node id;
- a port with an aggregation policy takes them all;
- a solver's next values go back into its own inputs, and an encode-only codec starts it from outside the loop;
- a codec that can decode is wired as decoder; to encode as well, add a second codec or an explicit edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from yggdrasill.errors import unknown_name
from yggdrasill.foundation.edges import Edge, Interface
from yggdrasill.foundation.node import Node
from yggdrasill.foundation.ports import Port, PortAggregation

__all__ = [
    "ROLES",
    "RoleGraph",
    "apply_auto_connect",
    "auto_edges",
    "get_rule_edges",
    "role_from_block_type",
    "suggest_edges_for_new_node",
    "use_task_node_auto_connect",
]

ROLES = ("backbone", "solver", "codec", "conditioner", "tokenizer", "adapter", "guidance", "position_embedder", "llm", "vlm")

#: (source role, target role) -> port pairs.
_RULES: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("tokenizer", "conditioner"): (("token_ids", "input"),),
    ("conditioner", "backbone"): (("embedding", "condition"),),
    ("conditioner", "adapter"): (("embedding", "condition"),),
    ("adapter", "backbone"): (("adapted", "condition"),),
    ("backbone", "solver"): (("pred", "pred"),),
    ("solver", "backbone"): (("next_latent", "latent"), ("next_timestep", "timestep")),
    ("solver", "solver"): (("next_latent", "latent"), ("next_timestep", "timestep")),
    ("codec", "solver"): (("encode_latent", "latent"),),
    ("solver", "codec"): (("next_latent", "decode_latent"),),
    ("backbone", "guidance"): (("pred", "pred_cond"),),
    ("guidance", "solver"): (("pred_guided", "pred"),),
}

#: Names other models use for a role's ports.
_ALIASES: dict[str, tuple[str, ...]] = {
    "latent": ("x",),
    "timestep": ("t",),
    "condition": ("context", "emb", "control", "style"),
    "pred": ("noise", "x0", "v", "model_output"),
    "next_latent": ("x_next",),
    "next_timestep": ("t_next",),
    "input": ("text", "image", "prompt", "token_ids"),
    "embedding": ("encoder_hidden_states",),
    "token_ids": ("input_ids",),
    "encode_latent": ("latent",),
    "decode_latent": ("latent",),
}

#: The distance of a source role from a target's port; a role that is not listed has 0.
_DISTANCE = {"backbone": 1, "conditioner": 1}


def role_from_block_type(block_type: str) -> str | None:
    """Return the role of a block type, compared without case: ``solver``, ``solver/ddim`` and ``Solver_ddim`` are solvers."""
    name = block_type.lower()
    for role in ROLES:
        if name == role or name.startswith((role + "/", role + "_")):
            return role
    return None


def get_rule_edges(source_role: str, target_role: str) -> list[tuple[str, str]]:
    """Return the (source port, target port) pairs of two roles, by their canonical names."""
    return list(_RULES.get((source_role.lower(), target_role.lower()), ()))


class RoleGraph(Protocol):
    """The part of a graph that automatic wiring uses."""

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The nodes by id."""
        ...

    @property
    def auto_wired(self) -> set[Edge]:
        """The edges that automatic wiring made; explicit edges are never changed."""
        ...

    def get_edges_in(self, node_id: str) -> list[Edge]:
        """Return the edges into a node."""
        ...

    def add_auto_edge(self, edge: Edge) -> None:
        """Add an edge and note that automatic wiring made it."""
        ...

    def remove_edge(self, edge: Edge) -> None:
        """Remove an edge."""
        ...


def suggest_edges_for_new_node(graph: RoleGraph, node_id: str) -> list[Edge]:
    """Return the edges that the rules propose between ``node_id`` and the other nodes (both ways) and that the graph lacks."""
    if node_id not in graph.nodes:
        raise unknown_name("node", node_id, graph.nodes)
    if role_from_block_type(graph.nodes[node_id].block_type) is None:
        return []
    return [
        edge
        for edge in _wanted(graph)
        if node_id in (edge.source_node, edge.target_node) and edge not in graph.get_edges_in(edge.target_node)
    ]


def apply_auto_connect(graph: RoleGraph, node_id: str) -> list[Edge]:
    """Add the suggested edges in place of automatic edges with a lower preference; return the added edges."""
    suggested = suggest_edges_for_new_node(graph, node_id)
    if suggested:
        for edge in graph.auto_wired - set(_wanted(graph)):
            graph.remove_edge(edge)
    # Values of a port with an aggregation policy come in the order of its edges, so that order is the sorted one too.
    ports = {(edge.target_node, edge.target_port) for edge in suggested}
    again = [edge for edge in graph.auto_wired if (edge.target_node, edge.target_port) in ports]
    for edge in again:
        graph.remove_edge(edge)
    for edge in sorted({*again, *suggested}, key=str):
        graph.add_auto_edge(edge)
    return suggested


def use_task_node_auto_connect(graph: RoleGraph) -> list[Edge]:
    """Wire every node with a role, as if all had been added with automatic wiring; return the added edges."""
    return [edge for node_id in graph.nodes for edge in apply_auto_connect(graph, node_id)]


def _wanted(graph: RoleGraph) -> list[Edge]:
    """Return the rules' edges for the whole graph, without those into single ports that an explicit edge feeds."""
    nodes = {node_id: (node.block_type, Interface.of_block(node.block)) for node_id, node in graph.nodes.items()}
    wanted = []
    for edge in auto_edges(nodes):
        port = nodes[edge.target_node][1].inputs[edge.target_port]
        explicit = [e for e in graph.get_edges_in(edge.target_node) if e.target_port == edge.target_port and e not in graph.auto_wired]
        if edge in explicit or port.aggregation is not PortAggregation.SINGLE or not explicit:
            wanted.append(edge)
    return wanted


def auto_edges(nodes: Mapping[str, tuple[str, Interface]]) -> list[Edge]:
    """Return every edge of the rules for these nodes (``{node_id: (block_type, ports)}``), sorted; see the module for the policy."""
    roles = {node: role for node, (block_type, _) in nodes.items() if (role := role_from_block_type(block_type))}
    wanted: dict[tuple[str, str], list[tuple[int, Edge, str]]] = {}
    for source, source_role in roles.items():
        for target, target_role in roles.items():
            if (source == target) != (source_role == target_role == "solver"):
                continue
            for edge in _rule_edges(source, source_role, target, target_role, nodes):
                wanted.setdefault((target, edge.target_port), []).append((_DISTANCE.get(source_role, 0), edge, source_role))
    edges: list[Edge] = []
    for (target, name), candidates in wanted.items():
        edges += _choose(nodes[target][1].inputs[name], candidates, roles[target])
    return sorted(edges, key=str)


def _rule_edges(source: str, source_role: str, target: str, target_role: str, nodes: Mapping[str, tuple[str, Interface]]) -> Iterable[Edge]:
    source_side, target_side = nodes[source][1].outputs, nodes[target][1].inputs
    if (source_role, target_role) == ("codec", "solver") and _find("decode_latent", nodes[source][1].inputs):
        return
    for out_name, in_name in _RULES.get((source_role, target_role), ()):
        out_port, in_port = _find(out_name, source_side), _find(in_name, target_side)
        if out_port and in_port and out_port.compatible_with(in_port):
            yield Edge(source, out_port.name, target, in_port.name)


def _find(name: str, side: Mapping[str, Port]) -> Port | None:
    for candidate in (name, *_ALIASES.get(name, ())):
        if candidate in side:
            return side[candidate]
    return None


def _choose(port: Port, candidates: list[tuple[int, Edge, str]], target_role: str) -> list[Edge]:
    if port.aggregation is not PortAggregation.SINGLE:
        return [edge for _, edge, _ in candidates]
    ordered = sorted(candidates, key=lambda item: (item[0], str(item[1])))
    if target_role == "solver":
        carried = [edge for _, edge, role in ordered if role == "solver"]
        first = [edge for _, edge, role in ordered if role != "solver"]
        return carried[:1] + first[:1]
    return [ordered[0][1]]
