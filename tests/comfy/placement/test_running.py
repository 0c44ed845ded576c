"""A part of a workflow on another server: the same results as locally, under the same ids."""

from __future__ import annotations

import asyncio
import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

from samples.comfy import Server
from samples.comfy_graphs import Caller, InBackground, data_folder, know, load_image, node, token_of, until
from samples.page_view import Shown, on_endpoints, show

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")


def pictures(server: Server, shown: Shown, node_id: str) -> list[tuple[int, ...]]:
    """Return the pixels of the files that an output node saved."""
    files = [server.base / item["type"] / item["subfolder"] / item["filename"] for item in shown.outputs[node_id]["images"]]
    return [tuple(pixels_of(file)) for file in files]


def pixels_of(file: Path) -> list[int]:
    with Image.open(file) as picture:
        return [int(value) for value in np.asarray(picture).reshape(-1)]


def shapes(server: Server, radius: int) -> dict[str, Any]:
    """A workflow with a picture from a file; ``radius`` keeps it out of caches."""
    rng = np.random.default_rng(radius)
    return {
        "1": load_image(server, f"shapes-{radius}.png", rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)),
        "2": node("ImageInvert", image=("1", 0)),
        "3": node("ImageBlur", image=("2", 0), blur_radius=radius, sigma=1.5),
        "4": node("ImageBlend", image1=("3", 0), image2=("1", 0), blend_factor=0.5, blend_mode="multiply"),
        "5": node("SaveImage", images=("4", 0), filename_prefix=f"placed-{radius}"),
        "6": node("PreviewImage", images=("2", 0)),
    }


def test_a_placed_part_returns_the_same_pixels_messages_and_history(a: Caller, b: Caller) -> None:
    placed = show(a.server, shapes(a.server, 3), on_endpoints(part=("b", ["2", "3", "4"])))
    (job,) = b.jobs(graph_id="part", limit=1)
    here = show(a.server, shapes(a.server, 3))
    assert job["status"] == "COMPLETED"
    assert placed.ran == {"1", "2", "3", "4", "5", "6"}
    assert placed.ran == here.ran | here.cached
    assert list(placed.outputs)
    assert placed.outputs.keys() == here.outputs.keys()
    assert placed.entry["meta"] == here.entry["meta"]
    for saver in ("5", "6"):
        assert pictures(a.server, placed, saver) == pictures(a.server, here, saver)
    assert {data["node"] for data in placed.of("executed")} == {data["node"] for data in here.of("executed") if data["output"]}
    assert placed.entry["prompt"][2] == here.entry["prompt"][2]


def test_history_and_pictures_contain_the_posted_prompt(a: Caller, b: Caller) -> None:
    prompt = shapes(a.server, 4)
    workflow = {"nodes": [{"id": 1, "type": "LoadImage"}], "links": [], "version": 0.4}
    placed = show(a.server, prompt, {**on_endpoints(part=("b", ["2", "3"])), "extra_pnginfo": {"workflow": workflow}})
    (saved,) = placed.outputs["5"]["images"]
    with Image.open(a.server.base / "output" / saved["filename"]) as picture:
        info = picture.info
    posted = json.loads(info["prompt"])
    assert {key: {name: each[name] for name in ("class_type", "inputs")} for key, each in posted.items()} == prompt
    assert json.loads(info["workflow"]) == workflow
    for text in (json.dumps(placed.entry), json.dumps(placed.messages), *map(str, info.values())):
        assert b.server.url not in text
        assert token_of(b.server) not in text
        assert "YggdrasillPlacedPart" not in text


def test_a_remote_error_is_reported_on_the_node_itself(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("TestSeveral", count=2),
        "2": node("TestDouble", value=("1", 0)),
        "3": node("TestFail", value=("2", 0), message="the oven is cold"),
        "4": node("TestShow", value=("3", 0)),
    }
    placed, here = show(a.server, prompt, on_endpoints(bake=("b", ["2", "3"]))), show(a.server, prompt)
    for name in ("node_id", "node_type", "exception_type", "exception_message"):
        assert placed.error[name] == here.error[name]
    assert placed.error["traceback"][-1].replace(str(b.server.base), "") == here.error["traceback"][-1].replace(str(a.server.base), "")
    assert set(placed.error["executed"]) == {"1", "2"}
    said = [facts for kind, facts in placed.entry["status"]["messages"] if kind == "execution_error"]
    assert [facts["node_id"] for facts in said] == ["3"]
    assert placed.entry["status"]["status_str"] == "error"


def test_an_interrupt_stops_the_part_at_its_endpoint(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("TestSeveral", count=1),
        "2": node("TestSlow", value=("1", 0), seconds=60.0, salt="placed"),
        "3": node("TestShow", value=("2", 0)),
    }
    watched = InBackground(partial(show, a.server, prompt, on_endpoints(long=("b", ["2"]))))
    until(lambda: b.jobs(graph_id="long", status="IN_PROGRESS"))
    until(lambda: b.queue()[0])
    a.server.post("/interrupt", {"prompt_id": a.queue()[0][0]})
    shown: Shown = watched.wait()
    assert shown.of("execution_interrupted")[0]["node_id"] == "2"
    assert shown.of("execution_interrupted")[0]["node_type"] == "TestSlow"
    until(lambda: b.jobs(graph_id="long")[0]["status"] == "CANCELLED")
    until(lambda: b.queue() == ([], []))


def test_progress_is_reported_for_the_inner_node(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("TestSeveral", count=1),
        "2": node("TestSlow", value=("1", 0), seconds=0.8, salt="progress"),
        "3": node("TestShow", value=("2", 0)),
    }
    shown = show(a.server, prompt, on_endpoints(steps=("b", ["2"])))
    states = [data["nodes"]["2"] for data in shown.of("progress_state") if "2" in data["nodes"]]
    assert (states[0]["state"], states[-1]["state"]) == ("running", "finished")
    assert len({state["value"] for state in states if state["max"] == 80.0}) > 3
    assert all(state["display_node_id"] == "2" for state in states)
    told = shown.of("progress")
    assert {(data["node"], data["max"]) for data in told} == {("2", 80.0)}
    assert len({data["value"] for data in told}) > 3


def test_outputs_of_inner_nodes_have_their_own_ids(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("TestSeveral", count=1),
        "2": node("TestTell", value=("1", 0), text="from inside"),
        "3": node("TestShow", value=("2", 0)),
    }
    extra = on_endpoints(tell=("b", ["2"]))
    first, again = show(a.server, prompt, extra), show(a.server, prompt, extra)
    assert len(b.jobs(graph_id="tell")) == 1
    assert first.outputs == {"2": {"text": ["from inside"]}, "3": {"text": ["0.0"]}}
    assert [data["output"] for data in first.of("executed") if data["node"] == "2"] == [{"text": ["from inside"]}]
    assert again.cached == {"1", "2", "3"}
    here = [show(a.server, {**prompt, "2": node("TestTell", value=("1", 0), text="from here")}) for _ in range(2)]
    assert [shown.outputs.keys() for shown in (first, again)] == [shown.outputs.keys() for shown in here]


def test_a_picture_shown_by_an_inner_node_is_stored_locally(a: Caller, b: Caller) -> None:
    prompt = {"1": node("TestSeveral", count=1), "2": node("TestSketch", value=("1", 0), grey=77), "3": node("TestShow", value=("2", 0))}
    placed = show(a.server, prompt, on_endpoints(sketch=("b", ["2"])))
    assert pictures(a.server, placed, "2") == [(77,) * 16]
    assert [data["output"] for data in placed.of("executed") if data["node"] == "2"] == [placed.outputs["2"]]


def test_a_part_is_called_again_only_if_it_may_change_by_itself(a: Caller, b: Caller) -> None:
    for name, inner, jobs in (("fickle", "TestFickle", 2), ("steady", "TestDouble", 1)):
        prompt = {"1": node("TestSeveral", count=1), "2": node(inner, value=("1", 0)), "3": node("TestShow", value=("2", 0))}
        for _ in range(2):
            assert show(a.server, prompt, on_endpoints(**{name: ("b", ["2"])})).outputs["3"] == {"text": ["0.0"]}
        assert len(b.jobs(graph_id=name)) == jobs


def test_lists_are_transferred_as_lists(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("TestSeveral", count=3),
        "2": node("TestDouble", value=("1", 0)),
        "3": node("TestShow", value=("2", 0)),
    }
    assert show(a.server, prompt, on_endpoints(list=("b", ["2"]))).outputs["3"] == {"text": ["0.0", "2.0", "4.0"]}
    assert show(a.server, prompt, on_endpoints(list=("b", ["1", "2"]))).outputs["3"] == {"text": ["0.0", "2.0", "4.0"]}


def test_a_blocked_input_blocks_only_what_depends_on_it(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("TestSeveral", count=2),
        "2": node("TestBlock", value=("1", 0), message="closed today"),
        "3": node("TestDouble", value=("1", 0)),
        "4": node("TestDouble", value=("2", 0)),
        "5": node("TestShow", value=("3", 0)),
        "6": node("TestShow", value=("4", 0)),
    }
    here = show(a.server, prompt)
    for nodes in (["3", "4"], ["2", "3", "4"]):
        placed = show(a.server, prompt, on_endpoints(services=("b", nodes)))
        assert placed.outputs == here.outputs == {"5": {"text": ["0.0", "2.0"]}}
        assert placed.entry["status"]["status_str"] == "success"


def test_classes_that_validate_the_types_of_their_links_receive_the_real_ones(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("PrimitiveInt", value=4711),
        "2": node("TestJudge", value=("1", 0), add=1),
        "3": node("TestJudge", value=("2", 0), add=2),
        "4": node("PreviewAny", source=("3", 0)),
    }
    shown = show(a.server, prompt, on_endpoints(part=("b", ["2"])))
    assert shown.outputs["4"] == {"text": ["4714"]}
    (job,) = b.jobs(graph_id="part", limit=1)
    assert job["status"] == "COMPLETED"


def test_a_value_between_two_parts_is_not_downloaded(a: Caller, b: Caller) -> None:
    prompt = shapes(a.server, 5)
    place = {"first": ("b", ["2", "3"]), "second": ("b", ["4"])}
    del prompt["6"]
    placed = show(a.server, prompt, on_endpoints(**place))
    here = show(a.server, prompt)
    assert pictures(a.server, placed, "5") == pictures(a.server, here, "5")
    first, second = b.jobs(graph_id="first")[0], b.jobs(graph_id="second")[0]
    assert (first["status"], second["status"]) == ("COMPLETED", "COMPLETED")


def test_a_part_may_be_placed_on_the_same_server(a: Caller, b: Caller) -> None:
    prompt = shapes(a.server, 6)
    placed = show(a.server, prompt, on_endpoints(self=("a", ["2", "3"]), other=("b", ["4"])))
    here = show(a.server, prompt)
    assert pictures(a.server, placed, "5") == pictures(a.server, here, "5")
    assert placed.ran == {"1", "2", "3", "4", "5", "6"}


def test_concurrent_prompts_do_not_mix(a: Caller, b: Caller) -> None:
    def one(number: int) -> Shown:
        prompt = {
            "1": node("TestSeveral", count=number),
            f"{number}2": node("TestSlow", value=("1", 0), seconds=0.1, salt=f"several {number}"),
            f"{number}3": node("TestShow", value=(f"{number}2", 0)),
        }
        return show(a.server, prompt, on_endpoints(many=("b", [f"{number}2"])))

    for number, running in enumerate([InBackground(partial(one, number)) for number in range(1, 6)], start=1):
        shown: Shown = running.wait()
        assert shown.outputs == {f"{number}3": {"text": [repr(float(each)) for each in range(number)]}}
        assert shown.ran <= {"1", f"{number}2", f"{number}3"}


def test_only_the_targets_of_a_partial_execution_run(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("TestSeveral", count=1),
        "2": node("TestDouble", value=("1", 0)),
        "3": node("TestFail", value=("2", 0)),
        "4": node("TestShow", value=("2", 0)),
        "5": node("TestShow", value=("3", 0)),
    }
    shown = show(a.server, prompt, on_endpoints(half=("b", ["2", "3"])), partial_execution_targets=["4"])
    assert shown.outputs == {"4": {"text": ["0.0"]}}
    assert "3" not in shown.ran


def test_credentials_and_extra_data_stay_local(a: Caller, b: Caller) -> None:
    prompt = {"1": node("TestSeveral", count=1), "2": node("TestDouble", value=("1", 0)), "3": node("TestShow", value=("2", 0))}
    show(
        a.server, prompt, {**on_endpoints(secret=("b", ["2"])), "api_key_comfy_org": "comfy-key-of-a-user", "auth_token_comfy_org": "ct-1"}
    )
    database = b"".join(file.read_bytes() for file in data_folder(b.server).glob("jobs.sqlite*"))
    assert b"TestDouble" in database
    assert b"comfy-key-of-a-user" not in database


def test_a_changed_registry_applies_to_the_next_prompt(a: Caller, b: Caller) -> None:
    prompt = {"1": node("TestSeveral", count=1), "2": node("TestDouble", value=("1", 0)), "3": node("TestShow", value=("2", 0))}
    extra = {"yggdrasill": {"graphs": {"moving": {"nodes": ["2"]}}}}
    both = {"a": a.server, "b": b.server}
    try:
        show(a.server, prompt, extra)
        assert b.jobs(graph_id="moving") == []
        know(a.server, both, {"moving": "b"})
        show(a.server, {**prompt, "1": node("TestSeveral", count=2)}, extra)
        assert len(b.jobs(graph_id="moving")) == 1
        (data_folder(a.server) / "endpoints.yaml").write_text("endpoints: [", encoding="utf-8")
        show(a.server, {**prompt, "1": node("TestSeveral", count=3)}, extra)
        assert len(b.jobs(graph_id="moving")) == 2
        assert "the version read before stays in use" in a.server.printed()
        know(a.server, both, {"moving": "local"})
        show(a.server, {**prompt, "1": node("TestSeveral", count=4)}, extra)
        assert len(b.jobs(graph_id="moving")) == 2
    finally:
        know(a.server, both)


def test_a_message_of_a_pack_reaches_the_page_of_the_prompt_and_no_page_of_the_endpoint(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=5),
        "2": node("TestFeedback", image=("1", 0), value="from there"),
        "3": node("PreviewImage", images=("2", 0)),
    }

    async def watched() -> tuple[Shown, list[str]]:
        async with aiohttp.ClientSession(b.server.url) as session, session.ws_connect("/ws", params={"clientId": "stranger"}) as page:
            shown = await asyncio.to_thread(show, a.server, prompt, on_endpoints(feedback=("b", ["2"])))
            seen = []
            with contextlib.suppress(asyncio.TimeoutError):
                while True:
                    message = await asyncio.wait_for(page.receive(), 0.5)
                    seen.append(json.loads(message.data)["type"] if message.type is aiohttp.WSMsgType.TEXT else "binary")
            return shown, seen

    shown, seen = asyncio.run(watched())
    assert [(data["node_id"], data["value"]) for data in shown.of("test-feedback")] == [("2", "from there")]
    assert "status" in seen
    assert set(seen) <= {"status", "feature_flags"}
