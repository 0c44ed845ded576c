"""A pipeline changed between runs, and its graphs with it: each run equals that of a pipeline built anew, or names the edge that fails."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from yggdrasill.errors import InvalidEdge
from yggdrasill.foundation import AbstractBaseBlock, Graph, Node, Port, PortDirection
from yggdrasill.pipeline import Pipeline, PipelineEdge

IDS = "abcd"


class Tagged(AbstractBaseBlock):
    """Returns its name with its input."""

    def __init__(self, tag: str) -> None:
        super().__init__()
        self.tag = tag

    def declare_ports(self) -> list[Port]:
        return [Port("x", PortDirection.IN, optional=True), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": (self.tag, inputs.get("x"))}


def graph_of(tag: str, name: str) -> Graph:
    """A graph of one block with the external ports ``x<name>`` and ``y<name>``."""
    graph = Graph("g")
    graph.add_node(Node("n", Tagged(tag)))
    graph.expose_input("n", "x", f"x{name}")
    graph.expose_output("n", "y", f"y{name}")
    return graph


class PipelineChanges(RuleBasedStateMachine):
    """The model is what a new pipeline is built from: a tag and a port name per graph, edges, exposed graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.pipeline = Pipeline("p")
        self.tags: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.edges: list[PipelineEdge] = []
        self.count = 0

    def _new_tag(self) -> str:
        self.count += 1
        return f"block {self.count}"

    @rule(name=st.sampled_from(IDS))
    def add_graph(self, name: str) -> None:
        if name not in self.tags:
            self.tags[name], self.names[name] = self._new_tag(), "0"
            self.pipeline.add_graph(graph_of(self.tags[name], "0"), name)

    @precondition(lambda self: self.tags)
    @rule(data=st.data())
    def remove_graph(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.tags)))
        self.pipeline.remove_graph(name)
        del self.tags[name], self.names[name]
        self.edges = [edge for edge in self.edges if name not in (edge.source_node, edge.target_node)]

    @precondition(lambda self: self.tags)
    @rule(data=st.data())
    def replace_block(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.tags)))
        self.tags[name] = self._new_tag()
        self.pipeline.get_graph(name).replace_block("n", Tagged(self.tags[name]))

    @precondition(lambda self: self.tags)
    @rule(data=st.data(), port=st.sampled_from("01"))
    def rename_ports(self, data: st.DataObject, port: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.tags)))
        graph = self.pipeline.get_graph(name)
        graph.remove_node("n")
        graph.add_node(Node("n", Tagged(self.tags[name])))
        graph.expose_input("n", "x", f"x{port}")
        graph.expose_output("n", "y", f"y{port}")
        self.names[name] = port

    @precondition(lambda self: self.tags)
    @rule(data=st.data())
    def add_edge(self, data: st.DataObject) -> None:
        source, target = (data.draw(st.sampled_from(sorted(self.tags))) for _ in range(2))
        if source < target:
            edge = PipelineEdge(source, f"y{self.names[source]}", target, f"x{self.names[target]}")
            self.pipeline.add_edge(edge.source_node, edge.source_port, edge.target_node, edge.target_port)
            self.edges += [] if edge in self.edges else [edge]

    @precondition(lambda self: self.edges)
    @rule(data=st.data())
    def remove_edge(self, data: st.DataObject) -> None:
        edge = data.draw(st.sampled_from(self.edges))
        self.pipeline.remove_edge(edge)
        self.edges.remove(edge)

    @invariant()
    def a_run_equals_that_of_a_new_pipeline_or_names_an_edge(self) -> None:
        names = self.names
        broken = [e for e in self.edges if e.source_port != f"y{names[e.source_node]}" or e.target_port != f"x{names[e.target_node]}"]
        if broken:
            with pytest.raises(InvalidEdge) as caught:
                self.pipeline.run()
            assert str(broken[0]) in str(caught.value)
            errors = self.pipeline.validate(strict=False).errors
            assert all(any(str(edge) in error for error in errors) for edge in broken)
            return
        seen: list[dict[str, Any]] = []
        for pipeline, workers in ((self.pipeline, None), (self._built_anew(), None), (self.pipeline, 3)):
            outputs: dict[str, Any] = {}

            def keep(child: str, phase: str, found: dict[str, Any] = outputs, **facts: Any) -> None:
                if phase == "after":
                    found[child] = list(facts["outputs"].values())

            pipeline.run(callbacks=keep, max_workers=workers)
            seen.append(outputs)
        assert seen[0] == seen[1] == seen[2]
        assert set(seen[0]) == set(self.tags)

    def _built_anew(self) -> Pipeline:
        new = Pipeline("new")
        for name in self.pipeline.node_ids:
            new.add_graph(graph_of(self.tags[name], self.names[name]), name)
        for edge in self.edges:
            new.add_edge(edge.source_node, edge.source_port, edge.target_node, edge.target_port)
        return new


PipelineChanges.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestPipelineChanges = PipelineChanges.TestCase
