"""Partition of prompts: which nodes run on endpoints, locally, or as copies, and the reported reasons."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from samples.comfy_prompts import SCHEMAS
from samples.comfy_schemas import comfy_schemas
from yggdrasill.errors import InvalidConfig, PartitionError, UnknownName
from yggdrasill.remote.partition import (
    PLACED_NODE,
    NodeSchema,
    NodeSchemas,
    Part,
    PartCall,
    Partition,
    describe,
    partition_prompt,
    restore_prompt,
)
from yggdrasill.remote.partition.assignment import Transferability
from yggdrasill.remote.partition.graph import PromptGraph

Prompt = dict[str, Any]
#: Text to image, whose picture is saved, inverted, and shown.
DRAWING: Prompt = {
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a tree", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 7, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]},
        "_meta": {"title": "Draw"},
        "is_changed": [0.5],
    },
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "tree"}},
    "10": {"class_type": "ImageInvert", "inputs": {"image": ["9", 0]}},
    "11": {"class_type": "PreviewImage", "inputs": {"images": ["10", 0]}},
}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def cut(prompt: Prompt, *nodes: str, node_id: str | None = None, targets: set[str] | None = None) -> Partition:
    """Return the partition of one part ``nodes``, over ComfyUI's classes or those of the samples."""
    return partition_prompt(prompt, [Part("drawing", frozenset(nodes), node_id)], schemas_for(prompt), targets)


def schemas_for(prompt: Prompt) -> NodeSchemas:
    known = comfy_schemas()
    return known if all(each["class_type"] in known for each in prompt.values()) else SCHEMAS


def only(partition: Partition) -> PartCall:
    (call,) = partition.calls
    return call


def crossing(call: PartCall) -> tuple[list[str], list[str]]:
    return [port.name for port in call.inputs], [port.name for port in call.outputs]


# -- one call -------------------------------------------------------------------------------------------------------------


def test_a_part_becomes_one_node_and_a_prompt_with_ports() -> None:
    partition = cut(DRAWING, "3", "4", "6", "7", "8", node_id="20")
    call = only(partition)
    assert crossing(call) == (["5.0"], ["8.0"])
    assert partition.prompt.keys() == {"5", "9", "10", "11", "20"}
    assert partition.prompt["9"]["inputs"]["images"] == ["20", 0]
    assert partition.prompt["20"]["class_type"] == PLACED_NODE
    assert partition.prompt["20"]["inputs"] == {"part": "drawing", "plan": call.plan, "ports.p0": ["5", 0]}
    assert partition.prompt["20"]["_meta"] == {"title": "drawing"}
    assert call.prompt == {
        "4": DRAWING["4"],
        "6": DRAWING["6"],
        "7": DRAWING["7"],
        "3": {
            **node("KSampler", seed=7, model=["4", 0], positive=["6", 0], negative=["7", 0], latent_image=["port.in.0", 0]),
            "_meta": {"title": "Draw"},
        },
        "8": DRAWING["8"],
        "port.in.0": node("YggdrasillGraphInput", name="5.0", type="LATENT"),
        "port.out.0": node("YggdrasillGraphOutput", name="8.0", type="IMAGE", value=["8", 0]),
    }


def test_a_plan_is_json_of_what_the_placed_node_needs() -> None:
    call = only(cut(DRAWING, "8"))
    plan = json.loads(call.plan)
    assert plan.keys() == {"part", "stage", "prompt", "inputs", "outputs", "asks_again"}
    assert plan["outputs"] == [{"name": "8.0", "type": "IMAGE", "hand_over": False}]
    assert call.plan == json.dumps(plan, separators=(",", ":"), ensure_ascii=False)


def test_the_prompt_given_is_never_changed_and_nothing_of_the_new_one_is_shared_with_it() -> None:
    given = copy.deepcopy(DRAWING)
    partition = cut(given, "3", "8")
    for prompt in (partition.prompt, only(partition).prompt):
        for each in prompt.values():
            each["inputs"].clear()
    assert given == DRAWING


def test_without_parts_the_prompt_comes_back_as_it_was() -> None:
    partition = partition_prompt(DRAWING, [], comfy_schemas())
    assert json.dumps(partition.prompt) == json.dumps(DRAWING)
    assert not partition.calls


def test_data_that_a_run_wrote_on_a_node_is_not_sent_and_its_title_is() -> None:
    inner = only(cut(DRAWING, "3")).prompt["3"]
    assert inner.keys() == {"class_type", "inputs", "_meta"}
    assert inner["_meta"] == {"title": "Draw"}


def test_wrapped_lists_and_lists_that_are_no_links_are_constants() -> None:
    wrapped = {"__value__": ["9", 0]}
    prompt = {"1": node("MakeImage", seed=wrapped, more=["a", "b", 3]), "2": node("SaveImage", images=["1", 0], filename_prefix="x")}
    inputs = only(cut(prompt, "1")).prompt["1"]["inputs"]
    assert inputs == {"seed": wrapped, "more": ["a", "b", 3]}
    assert inputs["seed"] is not wrapped


def test_the_placed_node_s_id_is_the_one_wanted_or_a_free_one() -> None:
    assert only(cut(DRAWING, "8", node_id="20")).node_id == "20"
    assert only(cut(DRAWING, "8", node_id="9")).node_id == "9_"
    assert only(cut(DRAWING, "3", "8")).node_id == "3.placed"


def test_port_nodes_take_no_id_of_the_users_nodes() -> None:
    prompt = {"port.in.0": node("MakeImage", seed=1), "2": node("Sharpen", image=["port.in.0", 0]), "3": node("Show", source=["2", 0])}
    call = only(cut(prompt, "2"))
    assert call.prompt["2"]["inputs"]["image"] == ["port_.in.0", 0]


# -- what stays -----------------------------------------------------------------------------------------------------------


def test_output_nodes_and_loaders_of_uploaded_files_run_locally_with_the_reason() -> None:
    prompt = {
        "1": node("LoadImage", image="a.png"),
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix="x"),
    }
    partition = cut(prompt, "1", "2", "3")
    assert partition.stays == {
        "1": "it loads a file of this server",
        "3": "it is an output node; its files and previews belong to this server",
    }
    assert only(partition).nodes == ("2",)


def test_nodes_that_need_the_account_go_only_where_it_may_go() -> None:
    prompt = {"1": node("MakeImage", seed=1), "2": node("CallService", image=["1", 0]), "3": node("Show", source=["2", 0])}
    assert only(cut(prompt, "1", "2")).nodes == ("1",)
    allowed = partition_prompt(prompt, [Part("drawing", frozenset("12"), credentials=True)], SCHEMAS)
    assert only(allowed).nodes == ("1", "2")


def test_consumers_of_a_saver_are_linked_past_it() -> None:
    partition = cut(DRAWING, "8", "9", "10")
    call = only(partition)
    assert call.prompt["10"]["inputs"]["image"] == ["8", 0]
    assert partition.prompt["9"]["inputs"]["images"] == [call.node_id, 0]
    assert [(link.node, link.through, link.source) for link in partition.relinks] == [("10", ("9", 0), ("8", 0))]


def test_an_output_node_that_is_not_known_to_pass_its_value_on_splits_the_part() -> None:
    prompt = {
        "1": node("MakeImage", seed=1),
        "2": node("StampAndSave", images=["1", 0]),
        "3": node("Sharpen", image=["2", 0]),
        "4": node("Show", source=["3", 0]),
    }
    first, second = cut(prompt, "1", "2", "3", node_id="20").calls
    assert (first.node_id, first.stage, first.nodes) == ("20", 0, ("1",))
    assert (second.node_id, second.stage, second.nodes) == ("20.1", 1, ("3",))


@pytest.mark.parametrize("targets, prefix", [({"11"}, "tree"), (None, ["12", 0])], ids=["it would not run by itself", "its name is linked"])
def test_a_saver_is_not_linked_past(targets: set[str] | None, prefix: Any) -> None:
    prompt = {**DRAWING, "12": node("StringConcatenate", string_a="a", string_b="b", delimiter="")}
    prompt["9"] = node("SaveImage", images=["8", 0], filename_prefix=prefix)
    partition = cut(prompt, "8", "9", "10", targets=targets)
    assert not partition.relinks
    assert len(partition.calls) == 2


def test_of_savers_in_a_row_only_those_that_run_anyway_are_skipped() -> None:
    prompt = {**DRAWING, "12": node("SaveImage", images=["8", 0], filename_prefix="x"), "9": node("SaveImage", images=["12", 0])}
    assert [link.source for link in cut(prompt, "8", "10").relinks] == [("8", 0)]
    assert [link.source for link in cut(prompt, "8", "10", targets={"9", "11"}).relinks] == [("12", 0)]


# -- what cannot travel ---------------------------------------------------------------------------------------------------


def test_producers_of_non_transferable_values_are_copied_transitively() -> None:
    prompt = {
        **DRAWING,
        "12": node("LoraLoader", lora_name="x", strength_model=1.0, strength_clip=1.0, model=["4", 0], clip=["4", 1]),
        "3": node("KSampler", seed=7, model=["12", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0]),
    }
    call = only(cut(prompt, "3"))
    assert (call.nodes, call.copies) == (("3",), ("4", "12"))


def test_a_maker_moves_if_nothing_here_needs_it() -> None:
    partition = cut(DRAWING, "3", "6", "7", "8")
    assert "4" not in partition.prompt
    assert only(partition).copies == ("4",)


def test_a_node_of_a_part_also_runs_locally_where_its_non_transferable_output_is_needed() -> None:
    partition = cut(DRAWING, "4", "3")
    assert partition.kept == ("4",)
    assert only(partition).copies == ("4",)
    assert partition.prompt["8"]["inputs"]["vae"] == ["4", 2]


def test_conditioning_that_holds_a_control_net_is_made_where_it_is_used() -> None:
    prompt = {
        **DRAWING,
        "12": node("ControlNetLoader", control_net_name="x"),
        "13": node("ControlNetApply", conditioning=["6", 0], control_net=["12", 0], image=["14", 0], strength=1.0),
        "14": node("LoadImage", image="a.png"),
        "15": node("ConditioningSetArea", conditioning=["13", 0], width=8, height=8, x=0, y=0, strength=1.0),
        "3": node("KSampler", seed=7, model=["4", 0], positive=["15", 0], negative=["7", 0], latent_image=["5", 0]),
    }
    call = only(cut(prompt, "3"))
    assert call.copies == ("4", "12", "13", "15")
    assert crossing(call)[0] == ["5.0", "6.0", "7.0", "14.0"]


def test_what_needs_a_model_from_an_output_node_stays() -> None:
    prompt = {
        "1": node("LoadModel", name="x"),
        "2": node("SaveModel", model=["1", 0]),
        "3": node("PatchModel", model=["2", 0], strength=1),
        "4": node("MakeLatent", seed=1),
        "5": node("Encode", text="x"),
        "6": node("Sample", model=["3", 0], cond=["5", 0], latent=["4", 0]),
        "7": node("SaveLatent", samples=["6", 0]),
    }
    partition = cut(prompt, "4", "5", "6")
    assert "that cannot be transferred, and that node runs locally" in partition.stays["6"]
    assert only(partition).nodes == ("4", "5")


@pytest.mark.parametrize(
    "link, kind, travels, known",
    [
        (["3", 0], "MODEL", False, True),
        (["5", 0], "IMAGE", True, True),
        (["6", 0], "MODEL", False, True),
        (["7", 0], "*", True, False),
        (["8", 0], "*", False, True),
    ],
    ids=["a reroute of a model", "a switch of images", "a switch of reroutes", "unknown", "unknown, and used as a model"],
)
def test_the_type_behind_reroutes_and_switches_is_found(link: list[Any], kind: str, travels: bool, known: bool) -> None:
    prompt = {
        "1": node("LoadModel", name="x"),
        "2": node("Reroute", any=["1", 0]),
        "3": node("Reroute", any=["2", 0]),
        "4": node("MakeImage", seed=1),
        "5": node("Switch", on=1, yes=["4", 0], no=["4", 0]),
        "6": node("Switch", on=1, yes=["3", 0], no=["2", 0]),
        "7": node("Reroute", any=1),
        "8": node("Reroute", any=1),
        "9": node("PatchModel", model=["8", 0], strength=1),
        **{f"s{index}": node("Show", source=[str(index), 0]) for index in (3, 5, 6, 7, 9)},
    }
    travel = Transferability(PromptGraph.of(prompt, SCHEMAS))
    transfer = travel.transfer(link[0], link[1])
    assert (travel.type_of(link[0], link[1]), transfer.transferable, transfer.known) == (kind, travels, known)


# -- stages and several parts -----------------------------------------------------------------------------------------------


def test_a_part_that_a_path_leaves_and_enters_again_runs_in_stages_that_hand_over() -> None:
    prompt = {
        "1": node("MakeImage", seed=1),
        "2": node("Sharpen", image=["1", 0]),
        "3": node("Blend", a=["1", 0], b=["2", 0]),
        "4": node("Show", source=["3", 0]),
    }
    partition = cut(prompt, "1", "3", node_id="20")
    first, second = partition.calls
    assert [(port.name, port.hand_over) for port in first.outputs] == [("1.0", False), ("1.0 handed over", True)]
    assert partition.prompt["2"]["inputs"]["image"] == ["20", 0]
    assert partition.prompt["20.1"]["inputs"]["ports.p0"] == ["20", 1]
    assert partition.prompt["20.1"]["inputs"]["ports.p1"] == ["2", 0]
    assert crossing(second) == (["1.0", "2.0"], ["3.0"])


def test_parts_that_need_each_other_in_turns_are_split_until_they_can_run() -> None:
    prompt = {
        "p1": node("MakeImage", seed=1),
        "q1": node("Sharpen", image=["p1", 0]),
        "q2": node("MakeImage", seed=2),
        "p2": node("Sharpen", image=["q2", 0]),
        "end": node("Blend", a=["q1", 0], b=["p2", 0]),
        "show": node("Show", source=["end", 0]),
    }
    partition = partition_prompt(prompt, [Part("p", frozenset({"p1", "p2"})), Part("q", frozenset({"q1", "q2"}))], SCHEMAS)
    assert len(partition.calls) == 3
    assert all(port.hand_over for call in partition.calls for port in call.outputs if port.node in {"p1", "q2"})


# -- lazy inputs, blockers, loops -------------------------------------------------------------------------------------------


def lazy_prompt() -> Prompt:
    return {
        "1": node("MakeImage", seed=1),
        "2": node("MakeImage", seed=2),
        "3": node("Switch", on=1, yes=["1", 0], no=["2", 0]),
        "4": node("Sharpen", image=["3", 0]),
        "5": node("Show", source=["4", 0]),
    }


def test_a_switch_with_both_its_branches_goes_with_them() -> None:
    assert only(cut(lazy_prompt(), "1", "2", "3", "4")).nodes == ("1", "2", "3", "4")


def test_a_switch_stays_here_where_it_could_ask_for_what_is_made_here() -> None:
    partition = cut(lazy_prompt(), "1", "3", "4")
    assert "requests inputs only if it needs them" in partition.stays["3"]
    assert [call.nodes for call in partition.calls] == [("1",), ("4",)]


def test_a_switch_goes_where_what_it_could_ask_for_is_made_anyway() -> None:
    prompt = {**lazy_prompt(), "6": node("Show", source=["2", 0])}
    assert only(cut(prompt, "1", "3", "4")).nodes == ("1", "3", "4")


def test_what_is_only_asked_for_at_need_is_a_call_of_its_own() -> None:
    prompt = {**lazy_prompt(), "6": node("Show", source=["7", 0]), "7": node("Sharpen", image=["8", 0]), "8": node("MakeImage", seed=3)}
    assert [call.nodes for call in cut(prompt, "1", "7", "8").calls] == [("7", "8"), ("1",)]


def test_what_a_blocker_would_stop_is_apart_from_what_it_would_not() -> None:
    prompt = {
        "1": node("MakeImage", seed=1),
        "2": node("Gate", image=["1", 0], open=1),
        "3": node("Sharpen", image=["2", 0]),
        "4": node("Sharpen", image=["1", 0]),
        "5": node("Show", source=["3", 0]),
        "6": node("Show", source=["4", 0]),
    }
    assert sorted(call.nodes for call in cut(prompt, "3", "4").calls) == [("3",), ("4",)]
    assert only(cut(prompt, "1", "2", "3", "4")).nodes == ("1", "2", "3", "4")


def test_what_works_through_a_list_of_which_some_may_be_blocked_stays() -> None:
    prompt = {
        "1": node("MakeImage", seed=1),
        "2": node("Split", image=["1", 0]),
        "3": node("Gate", image=["2", 0], open=1),
        "4": node("Sharpen", image=["3", 0]),
        "5": node("Join", image=["4", 0]),
        "6": node("Show", source=["5", 0]),
    }
    partition = cut(prompt, "4", "5")
    assert "some values of a list" in partition.stays["4"]
    assert only(partition).nodes == ("5",)


def test_a_loop_is_partitioned_whole_or_not_at_all() -> None:
    prompt = {
        "1": node("MakeImage", seed=1),
        "2": node("LoopStart", image=["1", 0]),
        "3": node("Sharpen", image=["2", 1]),
        "4": node("LoopEnd", flow=["2", 0], image=["3", 0]),
        "5": node("Sharpen", image=["4", 0]),
        "6": node("Show", source=["5", 0]),
    }
    assert only(cut(prompt, "2", "3", "4", "5")).nodes == ("2", "3", "4", "5")
    partition = cut(prompt, "3", "4", "5")
    assert partition.stays.keys() == {"3", "4"}
    assert only(partition).nodes == ("5",)


def test_a_loop_that_would_be_in_two_stages_stays() -> None:
    prompt = {
        "1": node("MakeImage", seed=1),
        "2": node("LoopStart", image=["1", 0]),
        "3": node("Sharpen", image=["1", 0]),
        "4": node("Blend", a=["2", 1], b=["3", 0]),
        "5": node("LoopEnd", flow=["2", 0], image=["4", 0]),
        "6": node("Show", source=["5", 0]),
        "7": node("Show", source=["2", 1]),
    }
    partition = cut(prompt, "1", "2", "4", "5")
    assert partition.stays.keys() == {"2", "4", "5"}
    assert only(partition).nodes == ("1",)


def test_a_call_does_not_get_into_a_loop_that_none_of_its_nodes_is_in() -> None:
    prompt = {
        "1": node("MakeImage", seed=1),
        "2": node("LoopStart", image=["1", 0]),
        "3": node("MakeImage", seed=2),
        "4": node("LoopEnd", flow=["2", 0], image=["3", 0]),
        "5": node("Blend", a=["3", 0], b=["2", 1]),
        "6": node("Show", source=["4", 0]),
        "7": node("Show", source=["5", 0]),
    }
    assert [call.nodes for call in cut(prompt, "3", "5").calls] == [("3",), ("5",)]


def test_a_blocker_behind_a_raw_link_blocks_nothing() -> None:
    prompt = {
        "1": node("MakeImage", seed=1),
        "2": node("Gate", image=["1", 0], open=1),
        "3": node("LoopStart", image=["2", 0]),
        "4": node("LoopEnd", flow=["3", 0], image=["1", 0]),
        "5": node("Show", source=["4", 0]),
    }
    with pytest.raises(PartitionError, match="in a loop whose nodes cannot all run in one call"):
        cut(prompt, "3", "4")


# -- what is asked for, and what is known -----------------------------------------------------------------------------------


def test_only_what_the_wanted_outputs_need_is_partitioned() -> None:
    partition = cut(DRAWING, "3", "8", "10", targets={"9"})
    assert only(partition).nodes == ("3", "8")
    assert partition.dropped == ()
    assert partition.prompt["10"] == DRAWING["10"]
    assert not cut(DRAWING, "10", targets={"9"}).calls


def test_an_unneeded_node_is_dropped_if_it_depends_on_a_partitioned_node() -> None:
    prompt = {**DRAWING, "12": node("PreviewImage", images=["13", 0]), "13": node("ImageInvert", image=["8", 0])}
    partition = cut(prompt, "8", targets={"9"})
    assert partition.dropped == ("12", "13")
    assert not {"12", "13"} & partition.prompt.keys()


def test_a_call_asks_again_if_a_node_in_it_does_or_a_copy() -> None:
    prompt = {"1": node("MakeImage", seed=1), "2": node("Measure", image=["1", 0]), "3": node("Show", source=["2", 0])}
    assert only(cut(prompt, "1", "2")).asks_again
    assert not only(cut(prompt, "1")).asks_again


def test_a_class_that_only_the_peer_has_is_partitioned() -> None:
    prompt = {**DRAWING, "10": node("PeersOwn", image=["9", 0])}
    part = [Part("drawing", frozenset({"10"}))]
    with pytest.raises(PartitionError, match=r"no schema for the class of node '10' \(PeersOwn\)"):
        partition_prompt(prompt, part, comfy_schemas())
    peers = NodeSchemas([NodeSchema("PeersOwn", outputs=("IMAGE",))])
    assert only(partition_prompt(prompt, part, comfy_schemas() | peers)).nodes == ("10",)


def test_an_unknown_class_outside_of_the_parts_is_comfyui_s_business() -> None:
    prompt = {**DRAWING, "12": node("Nobodys", image=["8", 0]), "13": node("PreviewImage", images=["12", 0])}
    partition = partition_prompt(prompt, [Part("drawing", frozenset({"8"}))], comfy_schemas())
    assert partition.prompt["12"]["inputs"]["image"] == [only(partition).node_id, 0]


# -- errors -----------------------------------------------------------------------------------------------------------------


def test_parts_that_share_a_node_are_refused_by_its_name() -> None:
    with pytest.raises(PartitionError, match=r"Parts 'a' and 'b' both contain node '8' \(VAEDecode\)") as caught:
        partition_prompt(DRAWING, [Part("a", frozenset({"3", "8"})), Part("b", frozenset({"8"}))], comfy_schemas())
    assert caught.value.details == {"part": "b", "nodes": ["8"]}


def test_a_node_that_is_not_there_is_refused_by_its_name() -> None:
    with pytest.raises(UnknownName, match="Unknown node '99'"):
        cut(DRAWING, "99")


@pytest.mark.parametrize(
    "nodes, said",
    [
        (["9"], r"'9' \(SaveImage\): it is an output node"),
        (["4"], r"'4' \(CheckpointLoaderSimple\): its output \(CLIP, MODEL, VAE\) cannot be transferred and is needed locally"),
    ],
)
def test_a_part_without_a_node_that_can_run_on_an_endpoint_is_an_error_with_reasons(nodes: list[str], said: str) -> None:
    with pytest.raises(PartitionError, match=said) as caught:
        cut(DRAWING, *nodes)
    assert caught.value.details["nodes"] == nodes


def test_more_ports_than_a_node_has_are_an_error() -> None:
    images = {f"a{index}": node("MakeImage", seed=index) for index in range(101)}
    stack = node("Stack", **{f"images.image{index}": [f"a{index}", 0] for index in range(101)})
    prompt = {**images, "s": stack, "end": node("Show", source=["s", 0])}
    with pytest.raises(PartitionError, match="would have 101 inputs, and a placed part has at most 100"):
        cut(prompt, "s")


@pytest.mark.parametrize(
    "broken, said",
    [
        (node("ImageInvert", image=["99", 0]), "linked to node '99', which does not exist"),
        (node("ImageInvert", image=["10", 0]), "cycle: "),
    ],
)
def test_a_prompt_that_comfyui_refuses_is_no_matter_of_parts(broken: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        cut({**DRAWING, "10": broken}, "8")


# -- telling and undoing ----------------------------------------------------------------------------------------------------


def test_a_partition_is_described_as_plain_data() -> None:
    reported = describe(cut(DRAWING, "3", "4", "8", "9", "10", node_id="20"))
    assert json.loads(json.dumps(reported)) == reported
    assert reported["parts"] == [
        {
            "name": "drawing",
            "calls": [
                {
                    "node_id": "20",
                    "stage": 0,
                    "nodes": ["3", "8", "10"],
                    "copies": ["4"],
                    "asks_again": False,
                    "inputs": [
                        {"name": "5.0", "type": "LATENT", "known": True, "from": "here"},
                        {"name": "6.0", "type": "CONDITIONING", "known": True, "from": "here"},
                        {"name": "7.0", "type": "CONDITIONING", "known": True, "from": "here"},
                    ],
                    "outputs": [
                        {"name": "8.0", "type": "IMAGE", "known": True, "hand_over": False},
                        {"name": "10.0", "type": "IMAGE", "known": True, "hand_over": False},
                    ],
                }
            ],
        }
    ]
    assert reported["here"] == ["4", "5", "6", "7", "9", "11"]
    assert reported["kept"] == ["4"]
    assert reported["through"] == [{"node": "10", "input": "image", "skips": "9", "takes": ["8", 0]}]


def test_restoring_the_parts_gives_the_prompt() -> None:
    plugged = restore_prompt(cut(DRAWING, "3", "4", "8", "10"))
    inputs = {node_id: each["inputs"] for node_id, each in plugged.items()}
    assert inputs == {node_id: each["inputs"] for node_id, each in DRAWING.items()}


def test_restoring_detects_a_node_that_was_exchanged() -> None:
    partition = cut(DRAWING, "3", "8")
    only(partition).prompt["4"]["inputs"]["ckpt_name"] = "other.safetensors"
    kept = cut(DRAWING, "3")
    only(kept).prompt["4"]["inputs"]["ckpt_name"] = "other.safetensors"
    with pytest.raises(PartitionError, match="node '4' differs from the node with this id in another call"):
        restore_prompt(kept)
