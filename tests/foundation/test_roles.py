"""Roles, their rule table row by row, and automatic wiring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from samples.graphs import edge
from yggdrasill.foundation import (
    AbstractBaseBlock,
    BlockRegistry,
    Graph,
    Port,
    PortDirection,
    apply_auto_connect,
    get_rule_edges,
    role_from_block_type,
    suggest_edges_for_new_node,
    use_task_node_auto_connect,
)

RULES = {
    ("tokenizer", "conditioner"): [("token_ids", "input")],
    ("conditioner", "backbone"): [("embedding", "condition")],
    ("conditioner", "adapter"): [("embedding", "condition")],
    ("adapter", "backbone"): [("adapted", "condition")],
    ("backbone", "solver"): [("pred", "pred")],
    ("solver", "backbone"): [("next_latent", "latent"), ("next_timestep", "timestep")],
    ("solver", "solver"): [("next_latent", "latent"), ("next_timestep", "timestep")],
    ("codec", "solver"): [("encode_latent", "latent")],
    ("solver", "codec"): [("next_latent", "decode_latent")],
    ("backbone", "guidance"): [("pred", "pred_cond")],
    ("guidance", "solver"): [("pred_guided", "pred")],
}
ROLES = ("backbone", "solver", "codec", "conditioner", "tokenizer", "adapter", "guidance", "position_embedder", "llm", "vlm")


class Shaped(AbstractBaseBlock):
    """Ports from class attributes, written ``name`` or ``name:dtype``."""

    takes: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()

    def declare_ports(self) -> Iterable[Port]:
        for names, direction in ((self.takes, PortDirection.IN), (self.gives, PortDirection.OUT)):
            for text in names:
                name, _, dtype = text.partition(":")
                yield Port(name, direction, dtype or "any")

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {}


def shaped(block_type: str, takes: str, gives: str) -> Shaped:
    kind: Any = type("Kind", (Shaped,), {"block_type": block_type, "takes": tuple(takes.split()), "gives": tuple(gives.split())})
    block: Shaped = kind()
    return block


def wired(*blocks: AbstractBaseBlock) -> list[str]:
    """The edges automatic wiring makes of blocks called after their role."""
    graph = Graph()
    for block in blocks:
        graph.add_node(block, node_id=role_from_block_type(block.block_type) or "none")
    return sorted(map(str, graph.get_edges()))


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_the_first_part_of_a_block_type_in_any_case(role: str) -> None:
    for block_type in (role, f"{role}/x", f"{role}_x", role.upper(), f"{role.title()}/X"):
        assert role_from_block_type(block_type) == role


@pytest.mark.parametrize("block_type", ["", "sample/add", "solvers", "my/solver", "solver-x", "backbones/x"])
def test_anything_else_has_no_role(block_type: str) -> None:
    assert role_from_block_type(block_type) is None


@pytest.mark.parametrize("source", ROLES)
@pytest.mark.parametrize("target", ROLES)
def test_the_rule_table_has_these_rows_and_no_others(source: str, target: str) -> None:
    assert get_rule_edges(source, target) == RULES.get((source, target), [])
    assert get_rule_edges(source.upper(), target.title()) == get_rule_edges(source, target)


@pytest.mark.parametrize("source, target", [pair for pair in RULES if pair[0] != pair[1]], ids=" to ".join)
def test_every_rule_wires_two_stubs(source: str, target: str) -> None:
    graph = Graph()
    graph.add_node("s", f"{source}/identity")
    graph.add_node("t", f"{target}/identity")
    made = {(link.source_port, link.target_port) for link in graph.get_edges() if (link.source_node, link.target_node) == ("s", "t")}
    # The identity codec can decode, so it is wired as decoder and does not start the solver.
    assert made == (set() if source == "codec" else set(RULES[source, target]))


def test_an_encode_only_codec_starts_the_solver() -> None:
    codec = shaped("codec/encoder", "encode_image:image", "encode_latent:tensor")
    solver = shaped("solver/x", "latent:tensor timestep:tensor pred:tensor", "next_latent:tensor next_timestep:tensor")
    assert "codec.encode_latent -> solver.latent" in wired(codec, solver)


@pytest.mark.parametrize(
    "source, target, expected",
    [
        (("solver/a", "pred", "x_next t_next"), ("backbone/a", "x t", "out"), "solver.x_next -> backbone.x, solver.t_next -> backbone.t"),
        (("backbone/a", "q", "noise"), ("solver/a", "model_output", "z"), "backbone.noise -> solver.model_output"),
        (("backbone/a", "q", "model_output"), ("guidance/a", "pred_cond", "pred_guided"), "backbone.model_output -> guidance.pred_cond"),
        (
            ("conditioner/a", "q", "encoder_hidden_states"),
            ("backbone/a", "context", "z"),
            "conditioner.encoder_hidden_states -> backbone.context",
        ),
        (("conditioner/a", "q", "embedding"), ("adapter/a", "control", "z"), "conditioner.embedding -> adapter.control"),
        (("tokenizer/a", "q", "input_ids"), ("conditioner/a", "prompt", "z"), "tokenizer.input_ids -> conditioner.prompt"),
        (("solver/a", "pred", "next_latent"), ("codec/a", "latent", "image"), "solver.next_latent -> codec.latent"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_aliases_are_wired_like_the_names_they_stand_for(source: tuple[str, str, str], target: tuple[str, str, str], expected: str) -> None:
    assert wired(shaped(*source), shaped(*target)) == sorted(expected.split(", "))


def test_ports_that_are_absent_or_of_other_types_are_not_wired() -> None:
    assert wired(shaped("backbone/a", "latent", "prediction"), shaped("solver/a", "pred", "next_latent")) == [
        "solver.next_latent -> backbone.latent"
    ]
    assert wired(shaped("backbone/a", "q", "pred:tensor"), shaped("solver/a", "pred:text", "z")) == []


def test_nodes_without_a_role_are_left_alone() -> None:
    assert wired(shaped("thing", "q", "pred"), shaped("solver/a", "pred", "z")) == []


def test_suggesting_changes_nothing_and_applying_adds_it() -> None:
    graph = Graph()
    graph.add_node("b", "backbone/identity")
    graph.add_node("s", "solver/identity", auto_connect=False)
    suggested = suggest_edges_for_new_node(graph, "s")
    assert graph.get_edges() == []
    assert edge("b.pred -> s.pred") in suggested
    assert apply_auto_connect(graph, "s") == suggested
    assert set(graph.get_edges()) == set(suggested)
    assert suggest_edges_for_new_node(graph, "s") == []
    with pytest.raises(KeyError, match="Unknown node 'x'"):
        suggest_edges_for_new_node(graph, "x")


def test_wiring_afterwards_gives_what_wiring_on_the_way_gives() -> None:
    types = ["tokenizer", "conditioner", "adapter", "backbone", "guidance", "solver", "codec"]
    at_once, afterwards = Graph(), Graph()
    for role in types:
        at_once.add_node(role, f"{role}/identity")
        afterwards.add_node(role, f"{role}/identity", auto_connect=False)
    use_task_node_auto_connect(afterwards)
    assert sorted(map(str, afterwards.get_edges())) == sorted(map(str, at_once.get_edges()))


def test_explicit_edges_are_never_displaced() -> None:
    graph = Graph()
    graph.add_node("b", "backbone/identity")
    graph.add_node("s", "solver/identity", auto_connect=False)
    graph.add_edge(edge("b.pred -> s.pred"))
    graph.add_node("g", "guidance/identity")
    assert [str(link) for link in graph.get_edges_in("s")] == ["b.pred -> s.pred"]


@pytest.mark.parametrize("role", ["backbone", "solver", "codec", "conditioner", "tokenizer", "adapter", "guidance"])
def test_every_role_has_a_stub(role: str) -> None:
    block = BlockRegistry().build({"type": f"{role}/identity"})
    passed = {
        "backbone": ("latent", "pred"),
        "solver": ("latent", "next_latent"),
        "codec": ("decode_latent", "decode_image"),
        "conditioner": ("input", "embedding"),
        "tokenizer": ("text", "token_ids"),
        "adapter": ("condition", "adapted"),
        "guidance": ("pred_cond", "pred_guided"),
    }[role]
    assert block.forward({passed[0]: 7}) == {passed[1]: 7}
