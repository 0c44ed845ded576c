"""The Remote Graph node between two real servers: the canvas shows the same as for a local run."""

from __future__ import annotations

import base64
import io
import json
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from samples.comfy import Servers, make_base_directory
from samples.comfy_graphs import (
    Caller,
    InBackground,
    data_folder,
    give,
    graph_input,
    graph_output,
    know,
    load_image,
    node,
    remote_node,
    token_of,
    until,
)
from samples.endpoints import cutter
from samples.page_view import show
from yggdrasill.executor.context import RunContext
from yggdrasill.remote import EndpointRegistry, RemoteWorkflow

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")

INNER = {"3": node("ImageInvert", image=("1", 0)), "5": node("ImageBlur", image=("3", 0), blur_radius=2, sigma=1.5)}
LARGE = (2, 512, 512, 3)
BLUR = {"1": graph_input("picture", "IMAGE"), **INNER, "9": graph_output("blurred", ("5", 0), "IMAGE")}


def error_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the error that ended a prompt."""
    found: dict[str, Any] = next(facts for kind, facts in entry["status"]["messages"] if kind == "execution_error")
    return found


def test_a_remote_graph_returns_the_same_bytes_as_local_nodes(a: Caller, b: Caller) -> None:
    b.deploy("blur", BLUR)
    picture = load_image(a.server, "remote.png", np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    prompt = {
        "1": picture,
        **INNER,
        "6": remote_node("blur", "b", ("1", 0)),
        "9": graph_output("here", ("5", 0)),
        "8": graph_output("there", ("6", 0)),
    }
    both = a.deploy("both", prompt).run({})
    assert both["here"].shape == (1, 40, 30, 3)
    assert torch.equal(both["here"], both["there"])


def large_images_through(a: Caller, other: Caller) -> int:
    """Run large images through a Remote Graph beside the same local nodes, and return the bytes that crossed the socket to ``other``."""
    other.deploy("blur", BLUR)
    prompt = {
        "1": graph_input("x", "IMAGE"),
        **INNER,
        "6": remote_node("blur", "other", ("1", 0)),
        "9": graph_output("here", ("5", 0)),
        "8": graph_output("there", ("6", 0)),
    }
    file = data_folder(a.server) / "endpoints.yaml"
    before = file.read_bytes()
    with cutter(other.server) as proxy:
        registry = EndpointRegistry.from_yaml(file)
        registry.add("other", proxy.url, token=token_of(other.server))
        registry.to_yaml()
        try:
            both = a.deploy("large", prompt).run({"x": torch.rand(LARGE)})
        finally:
            file.write_bytes(before)
        assert torch.equal(both["here"], both["there"])
        return proxy.to_server + proxy.to_client


def test_large_images_go_through_the_folder_of_a_server_on_the_same_machine(a: Caller, b: Caller) -> None:
    assert large_images_through(a, b) < 256 << 10


@pytest.mark.conformance
def test_large_images_cross_the_socket_without_a_shared_folder(servers: Servers, a: Caller) -> None:
    base = make_base_directory(servers.folder / "shares-nothing")
    (base / "user" / "yggdrasill").mkdir(parents=True)
    (base / "user" / "yggdrasill" / "settings.yaml").write_text("share_folder: false", encoding="utf-8")
    other = servers.start(base=base)
    try:
        assert large_images_through(a, Caller(other)) > 2 * 4 * math.prod(LARGE)
    finally:
        other.stop()


def test_auto_uses_the_registry_which_may_change_at_run_time(a: Caller, b: Caller) -> None:
    b.deploy("blur", BLUR)
    prompt = {"1": graph_input("x"), "2": remote_node("blur", "auto", ("1", 0)), "3": graph_output("y", ("2", 0))}
    picture = torch.rand(1, 8, 8, 3)
    a.deploy("auto", prompt)
    refused = a.refused(
        {
            "1": node("EmptyImage", width=8, height=8, batch_size=1, color=1),
            "2": remote_node("blur", "auto", ("1", 0)),
            "3": node("PreviewImage", images=("2", 0)),
        }
    )
    assert "The registry places graph 'blur' on no endpoint" in json.dumps(refused["node_errors"]["2"])
    know(a.server, {"a": a.server, "b": b.server}, {"blur": "b"})
    try:
        assert a.deploy("auto", prompt).run({"x": picture})["y"].shape == picture.shape
    finally:
        know(a.server, {"a": a.server, "b": b.server})


def test_an_unknown_endpoint_is_reported_on_the_node_before_anything_runs(a: Caller) -> None:
    refused = a.refused(
        {
            "1": node("EmptyImage", width=8, height=8, batch_size=1, color=1),
            "2": remote_node("blur", "c", ("1", 0)),
            "3": node("PreviewImage", images=("2", 0)),
        }
    )
    assert "Unknown endpoint 'c'" in json.dumps(refused["node_errors"]["2"])


@pytest.mark.parametrize(
    "graph, contract, said",
    [
        ("nowhere", "", "Unknown graph 'nowhere'"),
        ("blur", '{"inputs": [{"name": "image"}], "outputs": [{"name": "blurred"}]}', "this node has sockets for ['image']"),
        (
            "blur",
            '{"inputs": [{"name": "picture", "comfy_type": "MASK"}], "outputs": [{"name": "blurred"}]}',
            "are ['picture' (IMAGE)], but this node has sockets for ['picture' (MASK)]",
        ),
    ],
)
def test_mismatched_settings_are_reported_on_the_node(a: Caller, b: Caller, graph: str, contract: str, said: str) -> None:
    b.deploy("blur", BLUR)
    prompt = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=1),
        "2": remote_node(graph, "b", ("1", 0), contract=contract),
        "3": node("PreviewImage", images=("2", 0)),
    }
    error = error_of(a.server.run(prompt))
    assert error["node_id"] == "2"
    assert said in error["exception_message"]


def test_a_remote_graph_with_more_ports_than_sockets_is_refused_with_the_limit(a: Caller, b: Caller) -> None:
    b.deploy("wide", {"1": graph_input("x"), **{str(number): graph_output(f"y{number}", ("1", 0)) for number in range(2, 35)}})
    prompt = {"1": node("TestSeveral", count=1), "2": remote_node("wide", "b", ("1", 0)), "3": node("TestShow", value=("2", 0))}
    error = error_of(a.server.run(prompt))
    assert error["node_id"] == "2"
    assert "'wide' has 33 outputs, but Remote Graph supports at most 32. Expose fewer ports" in error["exception_message"]
    assert b.jobs(graph_id="wide") == []


def test_the_message_of_a_blocked_port_is_reported_on_blocked_nodes(a: Caller, b: Caller) -> None:
    inner = {
        "1": graph_input("x", "FLOAT"),
        "2": node("TestBlock", value=("1", 0), message="not today"),
        "3": graph_output("blocked", ("2", 0)),
        "4": graph_output("free", ("1", 0)),
    }
    b.deploy("blocks", inner)
    outer = {
        "1": node("TestSeveral", count=1),
        "2": remote_node("blocks", "b", ("1", 0)),
        "3": node("TestShow", value=("2", 0)),
        "4": node("TestShow", value=("2", 1)),
    }
    shown = show(a.server, outer)
    assert [(said["node_id"], said["exception_message"]) for said in shown.of("execution_error")] == [("3", "Execution Blocked: not today")]
    assert shown.outputs == {"4": {"text": ["0.0"]}}
    assert shown.entry["status"]["status_str"] == "success"


def test_a_failed_inner_node_is_reported_on_the_remote_node(a: Caller, b: Caller) -> None:
    b.deploy(
        "fails",
        {"1": graph_input("x"), "77": node("TestFail", value=("1", 0), message="the oven is cold"), "3": graph_output("y", ("77", 0))},
    )
    error = error_of(
        a.server.run({"1": node("TestSeveral", count=1), "2": remote_node("fails", "b", ("1", 0)), "3": node("TestShow", value=("2", 0))})
    )
    assert error["node_id"] == "2"
    assert "fails/77" in error["exception_message"]
    assert "the oven is cold" in error["exception_message"]


def test_values_that_are_not_transferable_are_refused_by_port_and_type(a: Caller, b: Caller) -> None:
    b.deploy("model", {"1": graph_input("weights", "MODEL"), "3": graph_output("y", ("1", 0))})
    before = len(b.jobs())
    error = error_of(
        a.server.run({"1": node("TestObject"), "2": remote_node("model", "b", ("1", 0)), "3": node("TestShow", value=("2", 0))})
    )
    assert "weights" in error["exception_message"]
    assert "MODEL" in error["exception_message"]
    assert len(b.jobs()) == before


def test_a_local_interrupt_cancels_the_remote_job(a: Caller, b: Caller) -> None:
    b.deploy(
        "long",
        {"1": graph_input("x"), "8": node("TestSlow", value=("1", 0), seconds=60.0, salt="interrupt"), "3": graph_output("y", ("8", 0))},
    )
    prompt_id = a.start({"1": node("TestSeveral", count=1), "2": remote_node("long", "b", ("1", 0)), "3": node("TestShow", value=("2", 0))})
    until(lambda: b.jobs(graph_id="long", status="IN_PROGRESS"))
    until(lambda: b.queue()[0])
    a.server.post("/interrupt", {"prompt_id": prompt_id})
    entry = until(lambda: a.history(prompt_id))
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    until(lambda: b.jobs(graph_id="long")[0]["status"] == "CANCELLED")
    until(lambda: b.queue() == ([], []))


def test_remote_branches_run_while_the_local_one_does(a: Caller, b: Caller) -> None:
    slow = {"1": graph_input("x"), "8": node("TestSlow", value=("1", 0), seconds=4.0, salt="branch"), "3": graph_output("y", ("8", 0))}
    b.deploy("branch", slow)
    prompt = {
        "1": graph_input("x"),
        "2": remote_node("branch", "b", ("1", 0)),
        "4": node("TestSlow", value=("1", 0), seconds=4.0, salt="here"),
        "5": graph_output("there", ("2", 0)),
        "6": graph_output("here", ("4", 0)),
    }
    assert a.deploy("branches", prompt).run({"x": 3.0}) == {"there": 3.0, "here": 3.0}
    events = a.events(a.jobs(graph_id="branches")[0]["job_id"])
    order = [data["node"] for kind, data in events if kind == "comfy" and data["what"] == "progress" and data["node"] in ("2", "4")]
    ends = {name: (order.index(name), len(order) - 1 - order[::-1].index(name)) for name in ("2", "4")}
    # the progress of each begins before that of the other ends
    assert ends["2"][0] < ends["4"][1]
    assert ends["4"][0] < ends["2"][1]


def test_remote_progress_is_progress_of_the_node(a: Caller, b: Caller) -> None:
    b.deploy(
        "steps", {"1": graph_input("x"), "8": node("TestSlow", value=("1", 0), seconds=0.6, salt="steps"), "3": graph_output("y", ("8", 0))}
    )
    prompt = {"1": graph_input("x"), "2": remote_node("steps", "b", ("1", 0)), "3": graph_output("y", ("2", 0))}
    a.deploy("outer", prompt).run({"x": 2.5})
    events = a.events(a.jobs(graph_id="outer")[0]["job_id"])
    seen = [(data["value"], data["max"]) for kind, data in events if kind == "comfy" and data["what"] == "progress" and data["node"] == "2"]
    assert (60.0, 60.0) in seen or (59.0, 60.0) in seen
    assert len(seen) > 3


def test_a_graph_of_blocks_runs_behind_the_same_node(a: Caller, b: Caller) -> None:
    from yggdrasill.remote.loop_thread import loop_thread

    config = {
        "graph_id": "tokens",
        "nodes": [{"node_id": "n", "block_type": "tokenizer/identity"}],
        "exposed_inputs": [{"node_id": "n", "port_name": "text", "name": "text"}],
        "exposed_outputs": [{"node_id": "n", "port_name": "token_ids", "name": "ids"}],
    }
    loop_thread().run(b.client.deploy("tokens", {"kind": "graph", "config": config, "state": None}))
    prompt = {"1": graph_input("x"), "2": remote_node("tokens", "b", ("1", 0)), "3": graph_output("y", ("2", 0))}
    assert a.deploy("tokenized", prompt).run({"x": "bees"})["y"] == "bees"


def test_two_servers_can_be_called_at_once(a: Caller, b: Caller) -> None:
    b.deploy("blur", BLUR)
    prompt = {"1": graph_input("x"), "2": remote_node("blur", "b", ("1", 0)), "3": graph_output("y", ("2", 0))}
    served = a.deploy("through", prompt)
    pictures = [torch.rand(1, 8, 8, 3) for _ in range(6)]
    calls = [InBackground(partial(give, served, picture)) for picture in pictures]
    direct = b.deploy("blur", BLUR)
    for call, picture in zip(calls, pictures, strict=True):
        assert torch.equal(call.wait(), direct.run({"picture": picture})["blurred"])


def preview_prompt(salt: str) -> dict[str, Any]:
    return {"1": graph_input("x"), "8": node("TestPreview", value=("1", 0), steps=10, salt=salt), "3": graph_output("y", ("8", 0))}


def previews(caller: Caller, prompt: dict[str, Any], **options: Any) -> list[tuple[str, bytes]]:
    """Return the nodes and pictures of the previews of one run, in order."""
    told: list[tuple[str, bytes]] = []

    def watch(kind: str, data: Any) -> None:
        if kind == "comfy" and data["what"] == "preview":
            told.append((data["node"], base64.b64decode(data["image"])))

    assert RemoteWorkflow(prompt, endpoint=caller.client).call({"x": 1}, RunContext(0), options, watch=watch) == {"y": 1}
    return told


def test_the_callers_preview_method_applies_at_the_endpoint(b: Caller) -> None:
    assert previews(b, preview_prompt("none")) == []
    assert previews(b, preview_prompt("off"), preview_method="none") == []
    shown = previews(b, preview_prompt("rgb"), preview_method="latent2rgb")
    assert {node_id for node_id, _ in shown} == {"8"}
    assert all(picture.startswith(b"\xff\xd8") for _, picture in shown)
    assert previews(b, preview_prompt("none again")) == []


def test_the_last_preview_of_a_node_always_arrives(b: Caller) -> None:
    def brightness(steps: int) -> float:
        prompt = {**preview_prompt(""), "8": node("TestPreview", value=("1", 0), steps=steps, salt="fast")}
        picture = Image.open(io.BytesIO(previews(b, prompt, preview_method="auto")[-1][1]))
        return float(np.asarray(picture.convert("L"), dtype=np.float32).mean())

    # the last step of n shows a latent of (n - 1) / n: the more steps, the further from the first one's
    one, four, sixty = brightness(1), brightness(4), brightness(60)
    assert abs(sixty - one) > abs(four - one) > 1


def test_a_remote_node_forwards_the_preview_method_and_shows_previews(a: Caller, b: Caller) -> None:
    b.deploy("previews", preview_prompt("remote"))
    around = {"1": graph_input("x"), "2": remote_node("previews", "b", ("1", 0)), "3": graph_output("y", ("2", 0))}
    assert {node_id for node_id, _ in previews(a, around, preview_method="latent2rgb")} == {"2"}
