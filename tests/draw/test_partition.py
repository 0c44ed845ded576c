"""The picture of a partitioned workflow."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from yggdrasill.draw import draw_partition
from yggdrasill.errors import InvalidConfig


def node(node_id: str, **facts: Any) -> dict[str, Any]:
    return {"node_id": node_id, "title": f"the {node_id}", **facts}


def edge(source: str, target: str) -> dict[str, str]:
    return {"source_node": source, "source_port": "IMAGE", "target_node": target, "target_port": "images"}


PARTITION = {
    "nodes": [
        node("loader", class_type="Load"),
        node("call", place="forge", inside={"nodes": [node("model", copy=True), node("sampler")], "edges": [edge("model", "sampler")]}),
        node("saver"),
    ],
    "edges": [edge("loader", "call"), edge("call", "saver")],
}


def words_of(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_partition_shows_what_runs_where_and_what_is_copied() -> None:
    svg = draw_partition(PARTITION, title="portrait")
    assert svg == draw_partition(PARTITION, title="portrait")
    words = words_of(svg)
    assert {"portrait", "2 nodes here · 1 call elsewhere", "the loader", "the call", "the saver", "the sampler", "forge"} <= set(words)
    assert "a copy: what it makes cannot travel" in words


def test_without_copies_the_legend_has_no_entry_for_them() -> None:
    plain = {
        **PARTITION,
        "nodes": [{**each, "inside": {"nodes": [node("x")]}} if "inside" in each else each for each in PARTITION["nodes"]],
    }
    assert not any("copy" in words for words in words_of(draw_partition(plain)))


def test_titles_are_escaped() -> None:
    svg = draw_partition({"nodes": [node("<script>", class_type='"&')]}, title="</svg>")
    assert "the <script>" in words_of(svg)


@pytest.mark.parametrize("wrong", [{"nodes": [{}]}, {"nodes": 3}, {"nodes": [node("a")], "edges": [edge("a", "b")]}])
def test_a_mapping_that_is_not_a_partition_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        draw_partition(wrong)
