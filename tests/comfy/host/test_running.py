"""Workflows with ports, run by the endpoint inside a real ComfyUI: the same values as a run in the editor."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from samples.comfy_graphs import Caller, Prompt, graph_input, graph_output, load_image, node
from yggdrasill.errors import BlockFailed, InvalidStructure, MissingInput, UnknownName
from yggdrasill.executor.context import RunContext, enter_run
from yggdrasill.remote import RemoteWorkflow
from yggdrasill.remote.comfy_ports import PortList
from yggdrasill.remote.loop_thread import loop_thread

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")  # the tests' torch need not be ComfyUI's

MIX: Prompt = {
    "1": graph_input("picture", "IMAGE"),
    "2": graph_input("strength", "FLOAT", default=0.25),
    "3": node("ImageInvert", image=("1", 0)),
    "4": node("ImageBlend", image1=("1", 0), image2=("3", 0), blend_factor=("2", 0), blend_mode="multiply"),
    "5": node("ImageBlur", image=("4", 0), blur_radius=2, sigma=1.5),
    "9": graph_output("mixed", ("5", 0), "IMAGE"),
}


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 24, 32, 3, generator=torch.Generator().manual_seed(seed))


def test_the_ports_of_a_served_workflow_are_its_contract(a: Caller) -> None:
    served = a.deploy("mix", MIX)
    assert [entry["name"] for entry in served.get_input_spec()] == ["picture", "strength"]
    assert served.get_output_spec(include_dtype=True)[0]["dtype"] == "image"
    assert served.contract.kind == "comfy"
    assert not served.deterministic


def test_a_served_run_equals_a_prompt(a: Caller) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    loaded = load_image(a.server, "mix.png", pixels)
    own = {**MIX, "1": loaded, "2": node("PrimitiveFloat", value=0.25), "9": node("SaveImage", images=("5", 0), filename_prefix="own")}
    entry = a.server.run(own)
    saved = entry["outputs"]["9"]["images"][0]["filename"]
    from PIL import Image

    expected = np.asarray(Image.open(a.server.base / "output" / saved))
    given = torch.from_numpy(pixels.astype(np.float32) / 255.0)[None]
    mixed = a.deploy("mix", MIX).run({"picture": given})["mixed"]
    assert mixed.dtype == torch.float32
    np.testing.assert_array_equal((mixed[0].numpy() * 255.0).clip(0, 255).astype(np.uint8), expected)


def test_a_workflow_that_is_not_deployed_runs_like_a_deployed_one(a: Caller) -> None:
    served = a.deploy("mix", MIX)
    before = loop_thread().run(a.client.graphs())
    passing = RemoteWorkflow(MIX, "passing", endpoint=a.client)
    given = picture(11)
    assert torch.equal(passing.run({"picture": given})["mixed"], served.run({"picture": given})["mixed"])
    assert loop_thread().run(a.client.graphs()) == before
    assert [row["status"] for row in a.jobs(graph_id="passing")] == ["COMPLETED"]
    failing = {"1": graph_input("x", "FLOAT"), "77": node("TestFail", value=("1", 0), message="cold"), "3": graph_output("y", ("77", 0))}
    with pytest.raises(BlockFailed, match=r"'part/77' \(TestFail\) failed: ValueError: cold"):
        RemoteWorkflow(failing, "part", endpoint=a.client).run({"x": 1.0})


def test_an_endpoint_returns_node_definitions_like_comfyui(a: Caller) -> None:
    names = ["KSampler", "ImageBlend", "LoadImage", "PrimitiveFloat", "YggdrasillGraphInput"]
    told = loop_thread().run(a.client.nodes([*names, "No,Such Node"]))
    assert told["nodes"] == {name: a.server.get(f"/object_info/{name}")[name] for name in names}
    assert told["asks_again"] == ["LoadImage"]
    assert told["unknown"] == ["No", "Such Node"]


def test_an_output_is_sent_before_the_prompt_ends(a: Caller) -> None:
    two = {
        "1": graph_input("picture", "IMAGE"),
        "2": node("ImageInvert", image=("1", 0)),
        "3": graph_output("early", ("2", 0), "IMAGE"),
        "4": node("TestSlow", value=("2", 0), seconds=1.5, salt="two sinks"),
        "5": graph_output("late", ("4", 0), "IMAGE"),
    }
    given = torch.rand(1, 128, 128, 3)
    heard: list[tuple[str, float]] = []
    context = RunContext(0, progress=lambda *facts: None)
    served = a.deploy("two", two)
    outputs = served.call({"picture": given}, context, watch=lambda kind, data: heard.append((kind, time.monotonic())))
    ended = time.monotonic()
    assert torch.equal(outputs["early"], 1.0 - given)
    assert torch.equal(outputs["late"], 1.0 - given)
    assert ended - next(at for kind, at in heard if kind == "output") > 1.0, heard


def test_a_value_comes_back_bit_for_bit(a: Caller) -> None:
    served = a.deploy("same", {"1": graph_input("x"), "2": graph_output("y", ("1", 0))})
    strange = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    values: list[Any] = [
        picture().permute(0, 3, 1, 2),
        strange,
        [1, [2.5, "three"], None],
        {"samples": picture(1), "batch_index": [0, 1]},
        (1, 2),
        True,
        2**70,
    ]
    for value in values:
        back = served.run({"x": value})["y"]
        assert type(back) is type(value)
        if isinstance(value, torch.Tensor):
            assert back.stride() == value.stride()
            assert torch.equal(back.view(torch.int32), value.view(torch.int32)) if value.is_contiguous() else torch.equal(back, value)
        elif isinstance(value, dict):
            assert torch.equal(back["samples"], value["samples"])
            assert back["batch_index"] == value["batch_index"]
        else:
            assert back == value


def test_a_default_is_used_for_a_missing_value(a: Caller) -> None:
    served = a.deploy(
        "defaults", {"1": graph_input("x", "FLOAT", default=1.5), "2": node("TestDouble", value=("1", 0)), "3": graph_output("y", ("2", 0))}
    )
    assert served.run({}) == {"y": 3.0}
    assert served.run({"x": 4.0}) == {"y": 8.0}


def test_lists_keep_comfyuis_meaning(a: Caller) -> None:
    prompt = {"1": graph_input("x", "FLOAT"), "2": node("TestDouble", value=("1", 0)), "3": graph_output("y", ("2", 0))}
    served = a.deploy("lists", prompt)
    assert served.run({"x": PortList([1.0, 2.5])}) == {"y": PortList([2.0, 5.0])}
    assert served.run({"x": [1, 2]}) == {"y": [1, 2, 1, 2]}
    several = a.deploy(
        "several", {"1": node("TestSeveral", count=3), "2": node("TestDouble", value=("1", 0)), "3": graph_output("y", ("2", 0))}
    )
    assert several.run({}) == {"y": PortList([0.0, 2.0, 4.0])}


def test_a_blocked_port_is_left_out_and_the_others_arrive(a: Caller) -> None:
    prompt = {
        "1": graph_input("x", "FLOAT"),
        "2": node("TestBlock", value=("1", 0), message="not today"),
        "3": graph_output("blocked", ("2", 0)),
        "4": graph_output("free", ("1", 0)),
    }
    assert a.deploy("blocked", prompt).run({"x": 2.0}) == {"free": 2.0}
    told = [data for kind, data in a.events(a.jobs(graph_id="blocked")[0]["job_id"]) if data.get("what") == "port_blocked"]
    assert [(data["port"], data["message"]) for data in told] == [("blocked", "not today")]


def test_equal_inputs_are_computed_once_and_still_arrive(a: Caller) -> None:
    prompt = {
        "1": graph_input("x"),
        "2": node("TestCount", value=("1", 0)),
        "3": graph_output("y", ("2", 0)),
        "4": graph_output("times", ("2", 1)),
    }
    served = a.deploy("counted", prompt)
    first = served.run({"x": picture(5)})
    again = served.run({"x": picture(5)})
    other = served.run({"x": picture(6)})
    assert (again["times"], other["times"]) == (first["times"], first["times"] + 1)
    assert torch.equal(again["y"], picture(5))


def test_two_inputs_of_one_name_get_the_same_value(a: Caller) -> None:
    prompt = {
        "1": graph_input("x", "IMAGE"),
        "2": graph_input("x"),
        "3": node("ImageBlend", image1=("1", 0), image2=("2", 0), blend_factor=1.0, blend_mode="difference"),
        "4": graph_output("y", ("3", 0)),
    }
    assert a.deploy("twice", prompt).run({"x": picture()})["y"].abs().max() == 0


def test_a_failing_node_is_named_by_the_callers_id(a: Caller) -> None:
    prompt = {"1": graph_input("x"), "77": node("TestFail", value=("1", 0), message="the oven is cold"), "3": graph_output("y", ("77", 0))}
    with pytest.raises(BlockFailed, match=r"'fails/77' \(TestFail\) failed: ValueError: the oven is cold") as caught:
        a.deploy("fails", prompt).run({"x": 1})
    assert caught.value.details["node_id"] == "77"
    assert caught.value.details["exception_type"] == "ValueError"
    assert any("nodes_for_tests" in line for line in caught.value.details["traceback"])


def test_validation_errors_have_the_callers_node_ids(a: Caller) -> None:
    prompt = {"41": node("CheckpointLoaderSimple", ckpt_name="there/is_none.safetensors"), "2": graph_output("m", ("41", 0), "MODEL")}
    with pytest.raises(InvalidStructure, match=r"node '41' \(CheckpointLoaderSimple\).*is_none") as caught:
        a.deploy("refused", prompt).run({})
    assert list(caught.value.details["node_errors"]) == ["41"]


def test_an_output_that_cannot_travel_is_named_by_port_and_type(a: Caller) -> None:
    prompt = {"1": node("TestObject"), "2": graph_output("the model", ("1", 0), "MODEL")}
    with pytest.raises(BlockFailed, match=r"the model.*MODEL") as caught:
        a.deploy("untransportable", prompt).run({})
    assert caught.value.details["node_id"] == "2"


def test_ports_are_checked_before_anything_is_queued(a: Caller) -> None:
    served = a.deploy("mix", MIX)
    with pytest.raises(MissingInput, match="no value for 'picture'"):
        served.run({})
    with pytest.raises(UnknownName, match="Unknown input 'pictures'"):
        served.run({"pictures": picture()})


def test_progress_of_inner_nodes_reaches_the_caller(a: Caller) -> None:
    prompt = {"1": graph_input("x"), "8": node("TestSlow", value=("1", 0), seconds=0.5, salt="progress"), "3": graph_output("y", ("8", 0))}
    seen: list[tuple[str, float, float]] = []
    with enter_run(progress=lambda place, done, total, text: seen.append((place, done, total))):
        assert a.deploy("slow", prompt).run({"x": 1})["y"] == 1
    assert {place.rpartition("/")[2] for place, _, _ in seen} == {"8"}
    assert seen[-1][1:] == (50.0, 50.0)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_the_events_of_a_job_report_its_nodes(a: Caller) -> None:
    prompt = {
        "1": graph_input("x", "IMAGE"),
        "7": node("PreviewImage", images=("1", 0)),
        "3": graph_output("y", ("1", 0)),
    }
    a.deploy("told", prompt).run({"x": picture(9)})
    events = a.events(a.jobs(graph_id="told")[0]["job_id"])
    told = [(data["what"], data.get("node") or data.get("port")) for kind, data in events if kind == "comfy"]
    assert ("started", None) in told
    assert ("executing", "7") in told
    assert ("executed", "7") in told
    assert ("output", "y") in told
    assert [data["status"] for kind, data in events if kind == "status"][-1] == "COMPLETED"


def test_many_jobs_at_once_each_get_their_own_result(a: Caller) -> None:
    from concurrent.futures import ThreadPoolExecutor

    served = a.deploy("same", {"1": graph_input("x"), "2": graph_output("y", ("1", 0))})
    with ThreadPoolExecutor(12) as threads:
        results = list(threads.map(lambda number: served.run({"x": float(number)})["y"], range(24)))
    assert results == [float(number) for number in range(24)]
