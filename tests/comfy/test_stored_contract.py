"""The contract that a Remote Graph node stores: sockets match ports of the same names and types in the same order only."""

from __future__ import annotations

import json
from typing import Any

import pytest

from yggdrasill.errors import InvalidArgument, InvalidConfig
from yggdrasill.remote.contract import RemoteContract
from yggdrasill.server_ext.comfy.stored_contract import StoredContract

IMAGE = {"name": "picture", "dtype": "image", "comfy_type": "IMAGE"}
MASK = {"name": "hole", "dtype": "comfy/MASK", "comfy_type": "MASK"}


def contract(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> RemoteContract:
    return RemoteContract("soften", "comfy", "h", inputs, outputs)


def stored(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> StoredContract:
    found = StoredContract.read(json.dumps({"graph_id": "soften", "kind": "comfy", "hash": "h", "inputs": inputs, "outputs": outputs}))
    assert found is not None
    return found


@pytest.mark.parametrize(
    "was, now",
    [
        (IMAGE, {**IMAGE, "optional": True}),
        ({"name": "picture"}, IMAGE),
        ({"name": "picture", "dtype": "image"}, IMAGE),
        ({"name": "hole", "dtype": "comfy/MASK"}, MASK),
        ({"name": "depth", "dtype": "number"}, {"name": "depth", "dtype": "tensor"}),
        ({"name": "any", "dtype": "any"}, {"name": "any", "comfy_type": "*"}),
    ],
    ids=["the same", "only its name was stored", "image", "mask", "one socket for both", "anything"],
)
def test_equal_names_and_types_match_the_stored_contract(was: dict[str, Any], now: dict[str, Any]) -> None:
    stored([was], [was, MASK]).check(contract([now], [now, MASK]), "endpoint 'b'")


@pytest.mark.parametrize(
    "now, said",
    [
        (
            [{**IMAGE, "dtype": "comfy/MASK", "comfy_type": "MASK"}, MASK],
            r"are \['picture' \(MASK\), 'hole' \(MASK\)\].*has sockets for \['picture' \(IMAGE\)",
        ),
        ([{**IMAGE, "comfy_type": "*", "dtype": "any"}, MASK], r"'picture' \(\*\)"),
        ([MASK, IMAGE], r"are \['hole' \(MASK\), 'picture' \(IMAGE\)\]"),
        ([IMAGE], r"are \['picture' \(IMAGE\)\], but this node has sockets for"),
        ([IMAGE, MASK, {"name": "more", "dtype": "text"}], r"'more' \(STRING\)"),
        ([{**IMAGE, "name": "image"}, MASK], r"'image' \(IMAGE\).*'picture' \(IMAGE\).*Choose the graph again"),
    ],
    ids=["another type", "of any type now", "in another order", "one is gone", "one is new", "renamed"],
)
def test_changed_ports_are_named_with_their_types(now: list[dict[str, Any]], said: str) -> None:
    for side, ports in (("inputs", (now, [])), ("outputs", ([], now))):
        was = ([IMAGE, MASK], []) if side == "inputs" else ([], [IMAGE, MASK])
        with pytest.raises(InvalidArgument, match=f"The {side} of graph 'soften' at endpoint 'b' .*{said}"):
            stored(*was).check(contract(*ports), "endpoint 'b'")


def test_an_empty_text_is_not_a_contract() -> None:
    assert StoredContract.read("  \n") is None


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '{"inputs": []}', '{"inputs": [{}], "outputs": []}', '{"inputs": [3], "outputs": []}', "[" * 9999]
)
def test_an_invalid_stored_contract_is_an_error(text: str) -> None:
    with pytest.raises(InvalidConfig, match="The contract stored in the node is not valid"):
        StoredContract.read(text)
