"""`text/template` and `text/join`."""

from __future__ import annotations

from typing import Any

import pytest

from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Edge, Graph


def block(block_type: str, **config: Any) -> AbstractBaseBlock:
    return BlockRegistry().build({"block_type": block_type, **config})


def test_slots_are_ports_and_get_filled() -> None:
    template = block("text/template", template="{{{place}}} in {style}, {place}", defaults={"style": "ink"})
    assert [(port.name, port.optional) for port in template.get_input_ports()] == [("place", False), ("style", True)]
    assert template.run({"place": "Tor"}) == {"text": "{Tor} in ink, Tor"}


def test_a_value_in_a_slot_is_not_expanded_as_a_template() -> None:
    assert block("text/template", template="{a}").run({"a": "{a} {b.c}"}) == {"text": "{a} {b.c}"}


@pytest.mark.parametrize("template", ["{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{}", "{0}", "a } b", "{text}", None, 3])
def test_a_template_with_other_than_plain_slots_is_refused(template: Any) -> None:
    with pytest.raises(InvalidArgument, match="text/template"):
        block("text/template", template=template)


def test_join_keeps_the_order_of_its_edges() -> None:
    graph = Graph("words")
    for node_id in ("b", "a"):
        graph.add_node(node_id, "text/template", config={"template": node_id})
    graph.add_node("join", "text/join", config={"separator": "-"})
    for node_id in ("b", "a"):
        graph.add_edge(Edge(node_id, "text", "join", "parts"))
    graph.expose_output("join", "text", name="text")
    assert graph.run({})["text"] == "b-a"


@pytest.mark.parametrize(
    "parts, text", [("a", "a"), (["a", "", {"text": "b"}], "a\n\nb"), ({"x:y": "a", "z:y": {"text": "b"}}, "a\n\nb"), ({"text": "a"}, "a")]
)
def test_join_reads_texts_lists_and_blocks(parts: Any, text: str) -> None:
    assert block("text/join").run({"parts": parts}) == {"text": text}
