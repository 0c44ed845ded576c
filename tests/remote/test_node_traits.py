"""The table of node traits: the shipped one, those of users and packs, and how wrong entries are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yggdrasill.errors import InvalidConfig
from yggdrasill.remote.node_traits import TraitsTable, read_traits, shipped_traits
from yggdrasill.remote.partition import NodeTraits


def test_the_shipped_table_has_loaders_savers_and_state() -> None:
    table = shipped_traits()
    assert table.nodes["VHS_LoadVideo"].reads_files
    assert table.nodes["Save Image (mtb)"].saves
    assert table.nodes["easy forLoopEnd"].with_outputs
    assert table.nodes["ListCounter //Inspire"].stays == "it counts in the memory of this server"
    assert table.types["VHS_VIDEOINFO"] is True


def test_a_table_of_the_user_has_precedence(tmp_path: Path) -> None:
    file = tmp_path / "node_traits.yaml"
    file.write_text(
        "nodes:\n  VHS_LoadVideo: {reads_files: false}\n  Mine: {keep_together: cache}\ntypes:\n  SEGS: transferable\n  NUMBER: not transferable\n",
        encoding="utf-8",
    )
    table = shipped_traits() | read_traits(file)
    assert table.nodes["VHS_LoadVideo"] == NodeTraits()
    assert table.nodes["Mine"] == NodeTraits(keep_together="cache")
    assert (table.types["SEGS"], table.types["NUMBER"]) == (True, False)
    assert table.nodes["Save Image (mtb)"].saves


@pytest.mark.parametrize(
    "document, said",
    [
        ({"node": {}}, r"got the keys \['node'\]"),
        ({"nodes": [1]}, "a table of node traits must be"),
        (
            {"nodes": {"A": {"stay": "x"}}},
            r"node class 'A' has .*Available keys: 'keep_together', 'reads_files', 'saves', 'stays', 'with_outputs'",
        ),
        ({"nodes": {"A": {"stays": True}}}, "'stays' of node class 'A' must be a text, got True"),
        ({"nodes": {"A": {"saves": "yes"}}}, "'saves' of node class 'A' must be true or false, got 'yes'"),
        ({"types": {"SEGS": True}}, "type 'SEGS' is True. Available: 'not transferable', 'transferable'"),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(document: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match=f"mine.yaml: .*{said}"):
        TraitsTable.from_dict(document, "mine.yaml")
