"""Names in a workflow of the editor: ``drawn.json`` was saved by ComfyUI's editor, with the prompt it makes of it.

In it node 7 and its copies 8, 9 (muted) and 10 (bypassed) are the subgraph 'Soften', inside of which node 6 is the subgraph
'Invert it' and the group 'Blurring' lies around node 3, which is collapsed. Node 18 is another subgraph 'Invert it'.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from yggdrasill.errors import InvalidConfig, UnknownEndpoint, UnknownName, YggdrasillError
from yggdrasill.remote.partition.named_parts import GROUP, SUBGRAPH, PartItem, named_parts
from yggdrasill.remote.partition.placement_keys import PlacedParts, StoredPlacement, parts_of, workflow_id, workflow_parts
from yggdrasill.remote.placement import Placement

DRAWN = json.loads((Path(__file__).parent / "drawn.json").read_text(encoding="utf-8"))
PROMPT: dict[str, Any] = DRAWN["prompt"]
KNOWN = ("studio", "attic")
JUNK: list[Any] = [
    None,
    True,
    -1,
    1e400,
    float("nan"),
    "",
    "7",
    [],
    [[]],
    {},
    [None],
    ["7", 0],
    {"0": "x"},
    {"id": 7, "type": {}},
    [{"id": [], "type": ""}],
]


@pytest.fixture
def workflow() -> dict[str, Any]:
    """A copy of the workflow, to be modified."""
    return copy.deepcopy(dict(DRAWN["workflow"]))


def naming(workflow: Any, graphs: dict[str, str] | None = None, chosen: Any = None, prompt: dict[str, Any] = PROMPT) -> PlacedParts:
    extra = {"extra_pnginfo": {"workflow": workflow}, "yggdrasill": {"graphs": chosen}}
    placements = {key: Placement.of(value, KNOWN, key) for key, value in (graphs or {}).items()}
    return parts_of(prompt, extra, placements, KNOWN)


def placed(workflow: Any, graphs: dict[str, str] | None = None, chosen: Any = None) -> dict[tuple[str, str | None], tuple[set[str], str]]:
    """Return nodes and endpoint by name and by the id of the remote node."""
    parts = naming(workflow, graphs, chosen).parts
    found = {(each.part.name, each.part.node_id): (set(each.part.nodes), each.placement.endpoints[0]) for each in parts}
    assert len(found) == len(parts)
    return found


def node(workflow: dict[str, Any], node_id: int, title: str | None = None) -> dict[str, Any]:
    graphs = [workflow] if title is None else [each for each in workflow["definitions"]["subgraphs"] if each["name"] == title]
    found: dict[str, Any] = next(each for each in graphs[0]["nodes"] if each["id"] == node_id)
    return found


def box(workflow: dict[str, Any], title: str, left: float, top: float, width: float, height: float) -> None:
    workflow["groups"].append({"id": 90, "title": title, "bounding": [left, top, width, height], "flags": {}})


def box_around(workflow: dict[str, Any], title: str, *nodes: int) -> None:
    """Place nodes in an empty area, and a group around them."""
    for number, node_id in enumerate(nodes):
        node(workflow, node_id)["pos"] = [5000, 5000 + 500 * number]
    box(workflow, title, 4900, 4900, 1000, 500 * len(nodes))


# -- subgraphs --------------------------------------------------------------------------------------------------


def test_each_instance_of_a_subgraph_is_a_part_of_its_own_under_one_name(workflow: dict[str, Any]) -> None:
    found = named_parts(workflow, PROMPT, ["Soften"])
    assert {part.node_id: set(part.nodes) for part in found} == {"7": {"7:6:2", "7:3"}, "8": {"8:6:2", "8:3"}, "9": set(), "10": set()}
    parts = naming(workflow, {"Soften": "studio"}).parts
    assert [(each.part.name, each.part.node_id, set(each.part.nodes)) for each in parts] == [
        ("Soften (7)", "7", {"7:6:2", "7:3"}),
        ("Soften (8)", "8", {"8:6:2", "8:3"}),
    ]


def test_a_title_that_the_user_gave_a_node_is_its_name_and_the_definitions_name_is_the_others(workflow: dict[str, Any]) -> None:
    node(workflow, 8)["title"] = "Soften more"
    assert placed(workflow, {"Soften": "studio"}) == {("Soften", "7"): ({"7:6:2", "7:3"}, "studio")}
    assert placed(workflow, {"Soften more": "attic"}) == {("Soften more", "8"): ({"8:6:2", "8:3"}, "attic")}


def test_a_path_names_what_is_nested_in_every_instance(workflow: dict[str, Any]) -> None:
    assert placed(workflow, {"Soften/Invert it": "studio"}) == {
        ("Soften/Invert it (7:6)", "7:6"): ({"7:6:2"}, "studio"),
        ("Soften/Invert it (8:6)", "8:6"): ({"8:6:2"}, "studio"),
    }


def test_a_key_means_the_part_with_this_path_and_without_one_all_parts_of_the_name(workflow: dict[str, Any]) -> None:
    assert placed(workflow, {"Invert it": "studio"}) == {("Invert it", "18"): ({"18:14"}, "studio")}
    node(workflow, 18)["title"] = "Soften"
    assert placed(workflow, {"Soften": "studio"}) == {
        ("Soften (7)", "7"): ({"7:6:2", "7:3"}, "studio"),
        ("Soften (8)", "8"): ({"8:6:2", "8:3"}, "studio"),
        ("Soften (18)", "18"): ({"18:14"}, "studio"),
    }
    assert not naming(workflow, {"Soften": "local"}).parts


def test_instances_of_one_definition_at_several_depths_are_one_thing(workflow: dict[str, Any]) -> None:
    definition = next(each for each in workflow["definitions"]["subgraphs"] if each["name"] == "Invert it")
    node(workflow, 18)["type"] = definition["id"]
    assert set(placed(workflow, {"Invert it": "studio"})) == {
        ("Invert it", "18"),
        ("Soften/Invert it (7:6)", "7:6"),
        ("Soften/Invert it (8:6)", "8:6"),
    }


def test_a_name_with_the_node_means_that_instance_alone(workflow: dict[str, Any]) -> None:
    assert placed(workflow, {"Soften (8)": "attic"}) == {("Soften", "8"): ({"8:6:2", "8:3"}, "attic")}
    assert placed(workflow, {"Invert it (8:6)": "attic"}) == {("Soften/Invert it", "8:6"): ({"8:6:2"}, "attic")}
    assert placed(workflow, {"Blurring (7)": "attic"}) == {("Soften/Blurring", None): ({"7:3"}, "attic")}
    assert placed(workflow, {"Soften": "studio", "Soften (8)": "attic"}) == {
        ("Soften (7)", "7"): ({"7:6:2", "7:3"}, "studio"),
        ("Soften (8)", "8"): ({"8:6:2", "8:3"}, "attic"),
    }
    node(workflow, 18)["title"] = "Soften"
    assert placed(workflow, {"Soften (18)": "attic"}) == {("Soften", "18"): ({"18:14"}, "attic")}
    node(workflow, 18)["title"] = "Twice (2)"
    assert placed(workflow, {"Twice (2)": "attic"}) == {("Twice (2)", "18"): ({"18:14"}, "attic")}


def test_a_title_with_a_slash_is_one_title(workflow: dict[str, Any]) -> None:
    node(workflow, 18)["title"] = "Image/Invert"
    assert set(placed(workflow, {"Image/Invert": "studio"})) == {("Image/Invert", "18")}
    assert placed(workflow, {"Invert": "studio"}) == {}


def test_an_id_that_the_prompt_has_already_is_not_taken_for_the_remote_node(workflow: dict[str, Any]) -> None:
    parts = naming(workflow, {"Invert it": "studio"}, prompt={**PROMPT, "18": PROMPT["1"]}).parts
    assert [each.part.node_id for each in parts] == [None]


def test_muted_and_bypassed_subgraphs_are_no_parts_and_no_error(workflow: dict[str, Any]) -> None:
    node(workflow, 9)["title"] = "Off"
    assert naming(workflow, {"Off": "studio"}) == PlacedParts()
    assert naming(workflow, chosen={"Off": {"endpoint": "studio"}}) == PlacedParts()


# -- groups -----------------------------------------------------------------------------------------------------


def test_a_group_holds_what_the_editor_says_it_holds(workflow: dict[str, Any]) -> None:
    editor = {title: {node_id for node_id in PROMPT if node_id.split(":")[0] in members} for title, members in DRAWN["groups"]}
    for title in ("First half", "All"):
        (part,) = [each for each in named_parts(workflow, PROMPT) if each.path == (title,)]
        assert part.kind == GROUP
        assert part.nodes == editor[title]


def test_a_group_takes_all_that_is_inside_of_its_subgraph_nodes(workflow: dict[str, Any]) -> None:
    assert placed(workflow, {"First half": "studio"}) == {("First half", None): ({"1", "7:6:2", "7:3", "18:14"}, "studio")}


def test_a_group_in_a_definition_is_a_part_of_each_instance(workflow: dict[str, Any]) -> None:
    for key in ("Blurring", "Soften/Blurring"):
        parts = naming(workflow, {key: "studio"}).parts
        assert [(each.part.name, set(each.part.nodes)) for each in parts] == [
            ("Soften/Blurring (7)", {"7:3"}),
            ("Soften/Blurring (8)", {"8:3"}),
        ]


@pytest.mark.parametrize("left, inside", [(0.0, True), (0.1, False), (-80.0, False), (-79.9, True)])
def test_the_left_edge_of_a_group_belongs_to_it_and_the_right_one_does_not(workflow: dict[str, Any], left: float, inside: bool) -> None:
    drawn = node(workflow, 1)
    box(workflow, "Edge", drawn["pos"][0] + drawn["size"][0] / 2 + left, drawn["pos"][1] - 30, 80, 500)
    assert bool(naming(workflow, {"Edge": "studio"}).parts) is inside


def test_positions_of_older_editors_are_read(workflow: dict[str, Any]) -> None:
    for each in workflow["nodes"]:
        each["size"] = {"0": each["size"][0], "1": each["size"][1]}
    assert set(placed(workflow, {"First half": "studio"})) == {("First half", None)}


def test_a_key_places_all_groups_of_its_title(workflow: dict[str, Any]) -> None:
    """Titles such as "Group" are the editor's default, so a key for one workflow must not make another one unrunnable."""
    box_around(workflow, "First half", 4)
    first, second = ({"1", "7:6:2", "7:3", "18:14"}, "studio"), ({"4"}, "studio")
    assert placed(workflow, {"First half": "studio"}) == {
        ("First half (group 2)", None): first,
        ("First half (group 90)", None): second,
    }
    assert placed(workflow, {"First half (group 90)": "studio"}) == {("First half", None): second}


def test_overlapping_groups_of_one_title_share_no_node(workflow: dict[str, Any]) -> None:
    box_around(workflow, "Group", 4, 1)
    box(workflow, "Group", 4900, 5400, 1000, 1000)
    node(workflow, 5)["pos"] = [5000, 6000]
    workflow["groups"][-1]["id"] = 91
    found = placed(workflow, {"Group": "studio"})
    assert sorted(sorted(nodes) for nodes, _ in found.values()) == [["1", "4"], ["5"]]


def test_of_overlapping_groups_that_keys_place_differently_the_smaller_has_the_shared_nodes(workflow: dict[str, Any]) -> None:
    """Keys hold for all workflows; in one of them two of them may name groups that overlap."""
    box_around(workflow, "Left", 4, 1)
    box(workflow, "Right", 4900, 5400, 1000, 2000)
    node(workflow, 5)["pos"], node(workflow, 18)["pos"] = [5000, 6000], [5000, 6500]
    found = naming(workflow, {"Left": "studio", "Right": "attic"})
    assert {each.part.name: set(each.part.nodes) for each in found.parts} == {"Left": {"1", "4"}, "Right": {"5", "18:14"}}
    assert found.warnings == ("group 'Left' and group 'Right' share nodes '1', which run with group 'Left'.",)


def test_a_group_around_a_subgraph_of_the_same_title_means_the_group(workflow: dict[str, Any]) -> None:
    box_around(workflow, "Invert it", 18, 1)
    assert placed(workflow, {"Invert it": "studio"}) == {("Invert it", None): ({"18:14", "1"}, "studio")}


# -- what the caller says ---------------------------------------------------------------------------------------


def test_a_caller_without_a_workflow_names_nodes() -> None:
    chosen = {"mine": {"nodes": ["4", 5], "endpoint": "studio"}}
    assert placed(None, chosen=chosen) == {("mine", None): ({"4", "5"}, "studio")}
    assert placed(None, {"mine": "attic"}, {"mine": {"nodes": ["4"]}}) == {("mine", None): ({"4"}, "attic")}


def test_a_subgraph_node_among_the_callers_nodes_stands_for_what_is_inside(workflow: dict[str, Any]) -> None:
    for drawing in (None, workflow):
        assert placed(drawing, {"mine": "studio"}, {"mine": {"nodes": ["7", "4"]}}) == {("mine", None): ({"7:6:2", "7:3", "4"}, "studio")}


def test_nodes_that_are_muted_may_be_among_the_callers(workflow: dict[str, Any]) -> None:
    assert placed(workflow, {"mine": "studio"}, {"mine": {"nodes": ["4", "9", "16", "17"]}}) == {("mine", None): ({"4"}, "studio")}


def test_the_call_wins_over_the_registry_and_the_registry_over_the_property(workflow: dict[str, Any]) -> None:
    node(workflow, 18)["properties"]["yggdrasill.endpoint"] = "studio"
    assert placed(workflow) == {("Invert it", "18"): ({"18:14"}, "studio")}
    assert placed(workflow, {"Invert it": "attic"}) == {("Invert it", "18"): ({"18:14"}, "attic")}
    assert placed(workflow, {"Invert it": "local"}) == {}
    assert placed(workflow, {"Invert it": "local"}, {"Invert it": {"endpoint": "attic"}}) == {("Invert it", "18"): ({"18:14"}, "attic")}


def test_an_endpoint_pinned_inside_a_definition_holds_for_each_instance(workflow: dict[str, Any]) -> None:
    node(workflow, 6, "Soften")["properties"]["yggdrasill.endpoint"] = "studio"
    assert placed(workflow) == {
        ("Soften/Invert it (7:6)", "7:6"): ({"7:6:2"}, "studio"),
        ("Soften/Invert it (8:6)", "8:6"): ({"8:6:2"}, "studio"),
    }


def test_an_unplaced_name_of_the_caller_is_a_warning(workflow: dict[str, Any]) -> None:
    found = naming(workflow, {"other": "studio"}, {"mine": {"nodes": ["4"]}})
    assert found.parts == ()
    assert len(found.warnings) == 1
    assert "no placement for 'mine', so it runs locally" in found.warnings[0]


@pytest.mark.parametrize(
    "chosen, error, message",
    [
        ({"mine": {"nodes": ["4", "99"]}}, UnknownName, r"Unknown node '99'. Available: '1', .*graphs\.mine\.nodes"),
        ({"Softn": {"endpoint": "studio"}}, UnknownName, r"Unknown part 'Softn'. Available: 'Soften',.*Did you mean 'Soften'\?"),
        ({"mine": {"nodes": "4"}}, InvalidConfig, r"graphs\.mine\.nodes must be a list of node ids, got '4'"),
        ({"mine": {"nodes": [["4", 0]]}}, InvalidConfig, "must be a list of node ids"),
        ({"mine": {"nodes": [True]}}, InvalidConfig, "must be a list of node ids"),
        ({"mine": {"node": ["4"]}}, InvalidConfig, r"Unknown key 'node' in .*graphs\.mine\. Available: 'endpoint', 'nodes'\."),
        ({"mine": "studio"}, InvalidConfig, "mine must be a mapping with 'nodes', 'endpoint' or both, got 'studio'"),
        ({"mine": {}}, InvalidConfig, "mine must be a mapping with 'nodes'"),
        (["mine"], InvalidConfig, "must be a mapping from names to"),
        ("", InvalidConfig, "must be a mapping from names to"),
        ({"mine": {"nodes": ["4"], "endpoint": "cellar"}}, UnknownEndpoint, r"Unknown endpoint 'cellar'.*graphs\.mine"),
        ({"mine": {"nodes": ["4"], "endpoint": 7}}, InvalidConfig, "got 7"),
    ],
)
def test_what_the_caller_says_must_fit(workflow: dict[str, Any], chosen: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        naming(workflow, chosen=chosen)


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"mine": {"nodes": ["4"]}},
            r"Unknown key 'mine' in extra_data\.yggdrasill\. Available: 'graphs', 'workflow'\. Names of parts belong below 'graphs'",
        ),
        ({"graphs": {}, "graph": {}, "x": 1}, "Unknown keys 'graph', 'x' in extra_data.yggdrasill. Available: 'graphs'"),
        ([], "extra_data.yggdrasill must be a mapping .*got list"),
        ("studio", "extra_data.yggdrasill must be a mapping .*got str"),
        (False, "extra_data.yggdrasill must be a mapping .*got bool"),
    ],
)
def test_a_forgotten_level_in_the_request_is_an_error(given: Any, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        parts_of({"4": {"class_type": "X", "inputs": {}}}, {"yggdrasill": given}, {}, ["studio"])


@pytest.mark.parametrize("given", [None, {}, {"graphs": None}, {"graphs": {}}])
def test_a_request_may_have_empty_entries(given: Any) -> None:
    assert parts_of({"4": {"class_type": "X", "inputs": {}}}, {"yggdrasill": given}, {}, ["studio"]).parts == ()


def test_an_unknown_endpoint_of_the_request_names_the_nodes() -> None:
    chosen = {"mine": {"nodes": ["4"], "endpoint": "cellar"}}
    with pytest.raises(UnknownEndpoint) as caught:
        parts_of({"3": {}, "4": {}}, {"yggdrasill": {"graphs": chosen}}, {}, ["studio"])
    assert caught.value.details["nodes"] == ["4"]


@pytest.mark.parametrize("pin, error", [("cellar", UnknownEndpoint), (["studio"], InvalidConfig)])
def test_a_property_that_names_no_endpoint_is_refused_with_its_place(workflow: dict[str, Any], pin: Any, error: type[Exception]) -> None:
    node(workflow, 18)["properties"]["yggdrasill.endpoint"] = pin
    with pytest.raises(error, match=r"property 'yggdrasill\.endpoint' of subgraph 'Invert it \(18\)'"):
        naming(workflow)


def test_registry_keys_of_other_workflows_are_passed_over_in_silence(workflow: dict[str, Any]) -> None:
    assert naming(workflow, {"terrain/atlas": "studio", "Upscale": "attic"}) == PlacedParts()


# -- parts inside parts -----------------------------------------------------------------------------------------


def test_a_part_inside_another_runs_where_it_is_placed_and_the_outer_one_has_the_rest(workflow: dict[str, Any]) -> None:
    assert placed(workflow, {"Soften": "studio", "Soften/Invert it": "attic"}) == {
        ("Soften (7)", "7"): ({"7:3"}, "studio"),
        ("Soften (8)", "8"): ({"8:3"}, "studio"),
        ("Soften/Invert it (7:6)", "7:6"): ({"7:6:2"}, "attic"),
        ("Soften/Invert it (8:6)", "8:6"): ({"8:6:2"}, "attic"),
    }
    assert placed(workflow, {"Soften": "studio", "Soften/Invert it": "local"}) == {
        ("Soften (7)", "7"): ({"7:3"}, "studio"),
        ("Soften (8)", "8"): ({"8:3"}, "studio"),
    }


def test_a_part_inside_another_of_the_same_placement_belongs_to_it(workflow: dict[str, Any]) -> None:
    assert placed(workflow, {"First half": "studio", "Invert it": "studio", "Blurring": "studio"}) == {
        ("First half", None): ({"1", "7:6:2", "7:3", "18:14"}, "studio"),
        ("Soften/Blurring (8)", None): ({"8:3"}, "studio"),
    }


def test_a_part_two_levels_down_is_taken_out_of_every_part_around_it(workflow: dict[str, Any]) -> None:
    assert placed(workflow, {"First half": "studio", "Soften": "attic", "Soften/Invert it": "studio"}) == {
        ("First half", None): ({"1", "18:14"}, "studio"),
        ("Soften (7)", "7"): ({"7:3"}, "attic"),
        ("Soften (8)", "8"): ({"8:3"}, "attic"),
        ("Soften/Invert it (7:6)", "7:6"): ({"7:6:2"}, "studio"),
        ("Soften/Invert it (8:6)", "8:6"): ({"8:6:2"}, "studio"),
    }


def test_of_a_group_and_the_subgraph_it_holds_alone_the_subgraph_is_the_inner_one(workflow: dict[str, Any]) -> None:
    box_around(workflow, "Around", 18)
    assert placed(workflow, {"Around": "studio", "Invert it": "attic"}) == {("Invert it", "18"): ({"18:14"}, "attic")}


def test_shared_nodes_belong_to_the_request_rather_than_to_a_key(workflow: dict[str, Any]) -> None:
    assert placed(workflow, {"First half": "studio"}, {"mine": {"nodes": ["1", "4"], "endpoint": "attic"}}) == {
        ("First half", None): ({"7:6:2", "7:3", "18:14"}, "studio"),
        ("mine", None): ({"1", "4"}, "attic"),
    }


def test_parts_of_a_request_of_which_each_holds_a_piece_of_the_other_are_refused(workflow: dict[str, Any]) -> None:
    chosen = {"mine": {"nodes": ["1", "4"], "endpoint": "attic"}, "First half": {"endpoint": "studio"}}
    with pytest.raises(InvalidConfig, match=r"selection 'mine' and group 'First half' share nodes '1', and neither lies inside the other"):
        naming(workflow, chosen=chosen)


# -- placements that the editor stored for the workflow -----------------------------------------------------------


def stored(workflow: Any, items: dict[PartItem, Any], graphs: dict[str, str] | None = None) -> dict[str, tuple[set[str], str]]:
    """Return nodes and endpoint by name."""
    extra = {"extra_pnginfo": {"workflow": workflow}} if workflow is not None else {}
    placements = {key: Placement.of(value, KNOWN, key) for key, value in (graphs or {}).items()}
    found = parts_of(PROMPT, extra, placements, KNOWN, {item: StoredPlacement(value, "Title") for item, value in items.items()})
    return {each.part.name: (set(each.part.nodes), each.placement.endpoints[0]) for each in found.parts}


def definition_id(workflow: dict[str, Any], name: str) -> str:
    return next(str(each["id"]) for each in workflow["definitions"]["subgraphs"] if each["name"] == name)


def test_a_stored_placement_means_one_node_or_group_and_not_its_title(workflow: dict[str, Any]) -> None:
    box_around(workflow, "First half", 4)
    assert stored(workflow, {PartItem("", GROUP, "90"): "attic"}) == {"First half": ({"4"}, "attic")}
    assert stored(workflow, {PartItem("", SUBGRAPH, "8"): "attic"}) == {"Soften": ({"8:6:2", "8:3"}, "attic")}
    workflow["groups"][-1]["title"] = "Renamed"
    assert stored(workflow, {PartItem("", GROUP, "90"): "attic"}) == {"Renamed": ({"4"}, "attic")}


def test_a_stored_placement_inside_a_definition_holds_for_each_instance(workflow: dict[str, Any]) -> None:
    inside = PartItem(definition_id(workflow, "Soften"), SUBGRAPH, "6")
    assert stored(workflow, {inside: "studio"}) == {
        "Soften/Invert it (7:6)": ({"7:6:2"}, "studio"),
        "Soften/Invert it (8:6)": ({"8:6:2"}, "studio"),
    }


def test_a_stored_placement_overrides_keys_and_properties_and_the_request_overrides_it(workflow: dict[str, Any]) -> None:
    item = PartItem("", SUBGRAPH, "18")
    node(workflow, 18)["properties"]["yggdrasill.endpoint"] = "studio"
    assert stored(workflow, {item: "local"}, {"Invert it": "attic"}) == {}
    assert stored(workflow, {item: "studio"}, {"Invert it": "attic"}) == {"Invert it": ({"18:14"}, "studio")}
    assert stored(workflow, {item: "local"}, {"*": "attic"})["*"][0] == set(PROMPT) - {"18:14"}
    extra = {"extra_pnginfo": {"workflow": workflow}, "yggdrasill": {"graphs": {"Invert it": {"endpoint": "attic"}}}}
    (part,) = parts_of(PROMPT, extra, {}, KNOWN, {item: StoredPlacement("studio", "Invert it")}).parts
    assert part.placement.endpoints == ("attic",)


def test_a_stored_placement_of_a_part_that_was_deleted_is_passed_over(workflow: dict[str, Any]) -> None:
    assert stored(workflow, {PartItem("", GROUP, "77"): "attic", PartItem("no graph", SUBGRAPH, "6"): "attic"}) == {}


def test_a_stored_placement_at_an_unknown_endpoint_is_refused(workflow: dict[str, Any]) -> None:
    with pytest.raises(UnknownEndpoint, match=r"Unknown endpoint 'cellar'.*the placement of 'Title' in this workflow"):
        stored(workflow, {PartItem("", SUBGRAPH, "18"): "cellar"})


def test_stored_placements_of_a_prompt_without_its_workflow(workflow: dict[str, Any]) -> None:
    assert stored(None, {PartItem("", SUBGRAPH, "7"): "attic"}) == {"Title": ({"7:6:2", "7:3"}, "attic")}
    for item in (PartItem("", GROUP, "1"), PartItem(definition_id(workflow, "Soften"), SUBGRAPH, "6")):
        with pytest.raises(InvalidConfig, match=r"placements of 'Title', which the prompt alone.*Send the workflow"):
            stored(None, {item: "attic"})


def test_two_stored_groups_that_overlap_at_different_endpoints_are_refused(workflow: dict[str, Any]) -> None:
    box_around(workflow, "Left", 4, 1)
    box(workflow, "Right", 4900, 5400, 1000, 1000)
    workflow["groups"][-1]["id"], node(workflow, 5)["pos"] = 91, [5000, 6000]
    with pytest.raises(InvalidConfig, match="share nodes '1'"):
        stored(workflow, {PartItem("", GROUP, "90"): "attic", PartItem("", GROUP, "91"): "studio"})


def test_the_id_of_a_workflow_is_named_by_the_request_or_read_from_its_workflow(workflow: dict[str, Any]) -> None:
    posted: dict[str, Any] = {"extra_pnginfo": {"workflow": workflow}}
    assert workflow_id(posted) == workflow["id"]
    assert workflow_id({**posted, "yggdrasill": {"workflow": "other"}}) == "other"
    for odd in (None, 7, "", "0" * 201, "00000000-0000-0000-0000-000000000000"):
        assert workflow_id({"extra_pnginfo": {"workflow": {"id": odd}}}) is None
    malformed: tuple[Any, ...] = (None, 7, [], {"extra_pnginfo": []}, {"extra_pnginfo": {"workflow": 5}})
    for junk in malformed:
        assert workflow_id(junk) is None
    for bad in (7, "", "0" * 201):
        with pytest.raises(InvalidConfig, match="workflow must be the id of a workflow"):
            workflow_id({"yggdrasill": {"workflow": bad}})


def test_all_parts_of_a_workflow_with_where_each_runs(workflow: dict[str, Any]) -> None:
    placements = {"First half": Placement.of("studio", KNOWN, "key")}
    found = workflow_parts(PROMPT, workflow, placements, KNOWN, {PartItem("", SUBGRAPH, "18"): StoredPlacement("attic", "Invert it")})
    places = {part.unique_name: placement and placement.endpoints for part in found.named for placement in [found.placement_of(part)]}
    assert places["First half (group 2)"] == ("studio",)
    assert places["Soften (7)"] == ("studio",)
    assert places["Soften (8)"] is None
    assert places["Invert it (18)"] == ("attic",)


# -- any input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 7, "x", [], [7], [{"id": 7, "type": ["x"]}], {"nodes": 1}])
def test_a_workflow_of_another_shape_names_nothing(workflow: dict[str, Any], value: Any) -> None:
    for field in ("nodes", "groups", "definitions"):
        assert naming({**workflow, field: value}, {"nowhere": "studio"}) == PlacedParts()
    workflow["definitions"]["subgraphs"][0]["nodes"] = value
    workflow["definitions"]["subgraphs"][1]["groups"] = value
    naming(workflow, {"Soften": "studio"})
    for field in ("title", "properties", "pos", "size", "flags"):
        node(workflow, 18)[field] = value
    naming(workflow, {"All": "studio"})
    naming(value, {"All": "studio"})


def test_definitions_that_hold_each_other_end(workflow: dict[str, Any]) -> None:
    for definition in workflow["definitions"]["subgraphs"]:
        definition["nodes"].append({**node(workflow, 7), "id": 7})
    assert set(placed(workflow, {"First half": "studio"})) == {("First half", None)}


def test_any_workflow_raises_only_errors_of_ours() -> None:
    placements = {name: Placement.of("studio", KNOWN, name) for name in ("Invert it", "First half", "Blurring")}
    chosen = {"mine": {"nodes": ["4", "7"], "endpoint": "studio"}, "Soften": {"endpoint": "attic"}}
    for seed in range(400):
        extra = copy.deepcopy({"extra_pnginfo": {"workflow": DRAWN["workflow"]}, "yggdrasill": {"graphs": chosen}})
        _spoil(extra, random.Random(seed))
        with contextlib.suppress(YggdrasillError):
            parts_of(PROMPT, extra, placements, KNOWN)


def _spoil(holder: Any, chance: random.Random) -> None:
    """Replace a random value by something else."""
    while True:
        key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if not isinstance(holder[key], (dict, list)) or not holder[key] or chance.random() < 0.1:
            holder[key] = copy.deepcopy(chance.choice(JUNK))
            return
        holder = holder[key]


def test_nesting_without_end_is_looked_into_to_a_bound(workflow: dict[str, Any]) -> None:
    soften = next(each for each in workflow["definitions"]["subgraphs"] if each["name"] == "Soften")
    soften["nodes"] = [{**node(workflow, 7), "id": 7}]
    deep = ":".join(["7"] * 5000)
    parts = naming(workflow, {"Soften": "studio"}, prompt={**PROMPT, deep: {}}).parts
    assert {"7:6:2", "7:3", deep} in [set(each.part.nodes) for each in parts]


def test_nothing_placed_costs_under_a_millisecond(workflow: dict[str, Any]) -> None:
    large = {**workflow, "nodes": [{**each, "id": 1000 * copy_ + each["id"]} for copy_ in range(40) for each in workflow["nodes"]]}
    prompt: dict[str, Any] = {str(1000 * copy_ + number): {} for copy_ in range(40) for number in range(12)}
    keys = {f"somewhere {number}/else": "studio" for number in range(20)}
    fastest = 1.0
    for _ in range(20):
        started = time.perf_counter()
        assert naming(large, keys, prompt=prompt) == PlacedParts()
        fastest = min(fastest, time.perf_counter() - started)
    assert fastest < 0.001
