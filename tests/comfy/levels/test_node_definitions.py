"""The definitions of the nodes: search words, tooltips and help pages."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from samples.comfy import Server

NODES = {
    "YggdrasillAddBlock": "Add Block",
    "YggdrasillConnect": "Connect (Yggdrasill)",
    "YggdrasillEndpointInfo": "Endpoint Info",
    "YggdrasillGraphInput": "Graph Input",
    "YggdrasillGraphOutput": "Graph Output",
    "YggdrasillLoadGraph": "Load Graph (Yggdrasill)",
    "YggdrasillLoadPipeline": "Load Pipeline",
    "YggdrasillLoadStage": "Load Stage",
    "YggdrasillLoadWorld": "Load World",
    "YggdrasillPipeline": "Pipeline (Yggdrasill)",
    "YggdrasillReadState": "Read State",
    "YggdrasillRemoteGraph": "Remote Graph",
    "YggdrasillRunGraph": "Run Graph",
    "YggdrasillRunStage": "Run Stage",
    "YggdrasillRunWorld": "Run World",
    "YggdrasillSaveConfig": "Save Config",
    "YggdrasillSaveWorld": "Save World",
    "YggdrasillStage": "Stage (Yggdrasill)",
    "YggdrasillState": "State (Yggdrasill)",
    "YggdrasillWorld": "World (Yggdrasill)",
    "YggdrasillWorldFromStages": "World from Stages",
}
#: Sockets that the editor makes after a contract.
NAMED_LATER = {"YggdrasillRemoteGraph", "YggdrasillRunGraph"}
BIGGEST = 64 << 10


@pytest.fixture(scope="session")
def forms(servers: Any) -> dict[str, Any]:
    found = servers.shared()[0].get("/object_info")
    return {name: form for name, form in found.items() if name.startswith("Yggdrasill") and not form.get("dev_only")}


def test_node_ids_and_names(forms: dict[str, Any]) -> None:
    assert {name: form["display_name"] for name, form in forms.items()} == NODES


@pytest.mark.parametrize("name", sorted(NODES))
def test_every_socket_has_a_tooltip(forms: dict[str, Any], name: str) -> None:
    form = forms[name]
    assert form["category"].split("/")[0] == "Yggdrasill"
    assert "yggdrasill" in form["search_aliases"]
    assert form["description"]
    for side in ("required", "optional"):
        for socket, (kind, settings) in form["input"].get(side, {}).items():
            assert settings.get("tooltip") or (kind == "COMFY_AUTOGROW_V3" and name in NAMED_LATER), socket
            for option in settings.get("options", ()) if kind == "COMFY_DYNAMICCOMBO_V3" else ():
                for inner, (_, inner_settings) in option["inputs"].get("optional", {}).items():
                    assert inner_settings.get("tooltip"), f"{option['key']}.{inner}"
    if name not in NAMED_LATER:
        assert len(form.get("output_tooltips") or []) == len(form["output"])
        assert all(form.get("output_tooltips") or [])


@pytest.mark.parametrize("name", sorted(NODES))
def test_every_node_has_a_help_page(server: Server, name: str) -> None:
    with urllib.request.urlopen(f"{server.url}/extensions/yggdrasill/docs/{name}.md") as answer:
        text = answer.read().decode("utf-8")
    assert text.startswith(f"# {NODES[name]}\n")
    assert "## Example" in text


def test_node_definitions_are_small(forms: dict[str, Any]) -> None:
    assert len(json.dumps(forms)) < BIGGEST


def test_each_setting_of_a_block_has_a_widget_of_its_kind(forms: dict[str, Any]) -> None:
    options = {option["key"]: option["inputs"] for option in forms["YggdrasillAddBlock"]["input"]["required"]["block"][1]["options"]}
    blend = options["image/blend"]["optional"]
    assert blend["opacity"][0] == "FLOAT"
    assert (blend["opacity"][1]["min"], blend["opacity"][1]["max"]) == (0.0, 1.0)
    assert blend["mode"][0] == "COMBO"
    assert options["procedural/measure"]["optional"]["peaks"][0] == "INT"
    assert options["procedural/shade"]["optional"]["vignette"][0] == "BOOLEAN"
    assert options["procedural/erosion"] == {"required": {}}
