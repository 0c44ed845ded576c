"""The contract of a graph composed on the canvas before it runs, and restrictions on configs in prompts."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
import torch

from samples.comfy_graphs import Caller, graph_input, graph_output, node
from samples.level_nodes import add_block, error_of, pasted, values_of


def ask(comfy: Caller, prompt: dict[str, Any], place: tuple[str, int], *, editor: bool = True) -> dict[str, Any]:
    """Return the response of the editor's route for the ports of a graph."""
    body = json.dumps({"prompt": prompt, "node": place[0], "output": place[1]}).encode()
    headers = {"Content-Type": "application/json", **({"X-Yggdrasill-Editor": "1"} if editor else {})}
    request = urllib.request.Request(f"{comfy.server.url}/yggdrasill/ui/ports", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            found: dict[str, Any] = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            found = json.loads(error.read())
    return found


def test_the_ports_of_a_composed_graph_are_known_before_a_run(comfy: Caller) -> None:
    prompt = {
        "1": add_block("image/blend", "b"),
        "2": node("YggdrasillConnect", graph=("1", 0), connections="b.image -> sheet", open_rest=True),
        "3": node("YggdrasillLoadGraph", source="template: upscale", **{"source.scale": 3.0}),
        "4": node(
            "YggdrasillPipeline",
            pipeline_id="p",
            connections="",
            names="",
            open_rest=True,
            **{"graphs.g0": ("2", 0), "graphs.g1": ("3", 0)},
        ),
    }
    contract = ask(comfy, prompt, ("4", 0))["contract"]
    assert [port["name"] for port in contract["inputs"]] == ["below", "above", "mask"]
    assert contract["outputs"] == [{"name": "image", "dtype": "image", "optional": False}]


@pytest.mark.parametrize(
    "prompt, said",
    [
        ({"1": node("LoadImage", image="x.png")}, "depends on a LoadImage node, so its ports are known only when the workflow runs"),
        ({"1": node("YggdrasillConnect", graph=("2", 0), connections="", open_rest=True)}, "depends on a missing node"),
        ({"1": node("YggdrasillConnect", graph=("1", 0), connections="", open_rest=True)}, "by a cycle"),
        ({"1": add_block("image/nothing")}, "Unknown block type"),
        ({"1": node("YggdrasillSaveWorld", name="x")}, "known only when the workflow runs"),
    ],
)
def test_a_graph_whose_ports_are_unknown_before_a_run_is_an_error(comfy: Caller, prompt: dict[str, Any], said: str) -> None:
    assert said in ask(comfy, prompt, ("1", 0))["error"]["message"]


def test_the_ports_route_is_reserved_for_the_editor(comfy: Caller) -> None:
    assert ask(comfy, {"1": add_block("image/blend")}, ("1", 0), editor=False)["error"]["type"] == "AccessDenied"


@pytest.mark.parametrize(
    "entry, said",
    [
        ({"config": {"ref": "/etc/passwd"}}, "looks like a path or an address"),
        ({"config": {"checkpoint_ref": "../../../etc/passwd"}}, "which is not in a folder that this host allows"),
        ({"config": {"api_key_env": "SOME_TOKEN"}}, "is a secret or refers to one of this host"),
        ({"config": {"base_url": "http://127.0.0.1:1/"}}, "not an endpoint known to this host"),
    ],
)
def test_a_pasted_config_may_not_name_files_or_secrets_of_the_host(comfy: Caller, entry: dict[str, Any], said: str) -> None:
    config = {"nodes": [{"node_id": "a", "block_type": "image/adjust", **entry}]}
    assert said in error_of(comfy, {"1": pasted("graph", config)})["exception_message"]


@pytest.mark.filterwarnings("ignore:BuildMismatch")
def test_a_workflow_as_a_graph_runs_nested_while_its_node_waits(comfy: Caller) -> None:
    inner = {"1": graph_input("x", "IMAGE"), "2": node("ImageInvert", image=("1", 0)), "3": graph_output("y", ("2", 0), "IMAGE")}
    prompt = {
        "1": pasted("graph", {"kind": "comfy", "graph_id": "turn", "prompt": inner}),
        "2": node("EmptyImage", width=8, height=8, batch_size=1, color=0x336699),
        "3": node("YggdrasillRunGraph", graph=("1", 0), seed=0, loop_steps=0, preview=True, **{"ports.p0": ("2", 0)}),
    }
    found = values_of(comfy, prompt, picture=("2", 0), result=("3", 0))
    assert torch.equal(found["result"], 1.0 - found["picture"])
