"""The executor against an interpreter written down straight from the seven steps of the specification, on generated graphs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings

from samples.graphs import GraphCase, bits, graph_cases, sample_registry
from yggdrasill.executor import RunContext, enter_run
from yggdrasill.foundation import Graph, ReusePool

Buffer = dict[tuple[str, str], Any]
modestly = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
Links = dict[str, list[tuple[str, str, str]]]


def reachable(links: Links, start: str) -> set[str]:
    """What ``start`` leads to, along one edge or more."""
    followers = defaultdict(set)
    for target, entries in links.items():
        for source, _, _ in entries:
            followers[source].add(target)
    found: set[str] = set()
    todo = list(followers[start])
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += followers[node]
    return found


def joined(policy: str, values: list[tuple[str, Any]]) -> Any:
    """What an aggregating port makes of (``node:port``, value) pairs in the order of its edges."""
    if policy == "dict":
        return dict(values)
    result = values[0][1]
    if policy in {"sum", "concat"}:
        for _, value in values[1:]:
            result = result + value
    return result


def inputs_of(graph: Graph, node: str, links: Links, ring: set[str], buffer: Buffer, given_buffer: Buffer) -> dict[str, Any]:
    """Step 5, with a carried value before an initialiser (16.10)."""
    inputs = {}
    for port in graph.get_node(node).get_input_ports():
        edges = [(source, out) for source, out, target in links[node] if target == port.name]
        if port.aggregation.value == "single":
            edges.sort(key=lambda end: end[0] not in ring)
        present = [(f"{end[0]}:{end[1]}", buffer[end]) for end in edges if end in buffer]
        defaults: Mapping[str, Any] = graph.get_node(node).block.config.get("defaults", {})
        if present:
            inputs[port.name] = joined("first" if port.aggregation.value == "single" else port.aggregation.value, present)
        elif (node, port.name) in given_buffer:
            inputs[port.name] = given_buffer[node, port.name]
        elif port.name in defaults:
            inputs[port.name] = defaults[port.name]
    return inputs


def interpret(case: GraphCase, graph: Graph, seed: int) -> dict[str, Any]:
    """Run ``graph`` by the specification's steps 1-7, by brute force."""
    links: Links = {node: [] for node in graph.node_ids}
    for link in graph.get_edges():
        links[link.target_node].append((link.source_node, link.source_port, link.target_port))
    given_buffer = {
        (entry["node_id"], entry["port_name"]): case.inputs[entry["name"]]
        for entry in graph.get_input_spec()
        if entry["name"] in case.inputs
    }
    buffer: Buffer = {}
    after = {node: reachable(links, node) for node in graph.node_ids}
    rings = {node: {other for other in after[node] if node in after[other]} for node in graph.node_ids}
    wanted = graph.metadata.get("cycle_order", [])
    waiting = list(graph.node_ids)
    with enter_run(seed=seed) as context:
        while waiting:
            first = next(node for node in waiting if not any(node in after[other] and other not in rings[node] for other in waiting))
            ring = rings[first]
            members = sorted(ring, key=lambda node: (wanted.index(node) if node in wanted else len(wanted), node)) or [first]
            for iteration in range(case.steps if ring else 1):
                for node in members:
                    call(graph, node, inputs_of(graph, node, links, ring, buffer, given_buffer), buffer, context, iteration)
            waiting = [node for node in waiting if node not in members]
    exposed = [(entry["name"], (entry["node_id"], entry["port_name"])) for entry in graph.get_output_spec()]
    return {name: buffer[end] for name, end in exposed if end in buffer}


def call(graph: Graph, node: str, inputs: dict[str, Any], buffer: Buffer, context: RunContext, iteration: int) -> None:
    context.node, context.call = node, iteration
    for port, value in graph.get_node(node).block.forward(inputs).items():
        buffer[node, port] = value


@modestly
@given(graph_cases())
def test_the_executor_does_what_the_specification_says_step_by_step(case: GraphCase) -> None:
    expected = interpret(case, case.build(), seed=11)
    assert bits(case.build().run(case.inputs, num_loop_steps=case.steps, seed=11)) == bits(expected)


@modestly
@given(graph_cases())
def test_run_save_load_and_run_again_gives_identical_bits(case: GraphCase) -> None:
    graph = case.build()
    graph.run(case.inputs, num_loop_steps=case.steps, seed=3)
    for backend, form in (("json", "dir"), ("safetensors", "archive")):
        with TemporaryDirectory() as folder:
            path = Path(folder) / ("save.zip" if form == "archive" else "save")
            graph.save(path, format=form, backend=backend)
            loaded = Graph.load(path, registry=sample_registry(), pool=ReusePool())
        expected = graph.run(case.inputs, num_loop_steps=case.steps, seed=4)
        assert bits(loaded.run(case.inputs, num_loop_steps=case.steps, seed=4)) == bits(expected)


@modestly
@given(graph_cases())
def test_a_config_comes_back_as_it_was(case: GraphCase) -> None:
    assert case.build().to_config() == case.config


@modestly
@given(graph_cases())
def test_a_dry_run_gives_none_for_every_output_and_changes_no_block(case: GraphCase) -> None:
    graph = case.build()
    before = bits(graph.state_dict())
    outputs = graph.run(case.inputs, num_loop_steps=case.steps, dry_run=True)
    assert outputs == {entry["name"]: None for entry in graph.get_output_spec()}
    assert bits(graph.state_dict()) == before


def test_the_generated_graphs_cover_cycles_policies_and_every_block() -> None:
    seen: set[str] = set()

    @settings(max_examples=120, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(graph_cases())
    def look(case: GraphCase) -> None:
        seen.update(case.traits)

    look()
    assert seen >= {"cycle", "noise", "branch", "accumulate", "mix", "composite", "collect"}
