"""Model files of placed parts: files that only the endpoint has, missing ones, other bytes under one name, and paths of another system."""

from __future__ import annotations

import itertools
import json
import urllib.request
from typing import Any

import pytest

from samples.comfy_graphs import Caller, node
from samples.page_view import Shown, show
from yggdrasill.server_ext.comfy.editor.route_guard import UI_HEADER

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")

_NUMBERS = itertools.count(1)


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"pigment{next(_NUMBERS)}"


def write(caller: Caller, name: str, content: str, kind: str = "loras") -> None:
    file = caller.server.base / "models" / kind / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")


def prompt_of(lora: str) -> dict[str, Any]:
    return {"1": node("HabitReadLora", lora=lora), "9": node("PreviewAny", source=("1", 0))}


def placed(a: Caller, prompt: dict[str, Any], models: str = "same", **extra: Any) -> Shown:
    part = {"nodes": ["1"], "endpoint": {"replicas": ["b"], "models": models}}
    return show(a.server, prompt, {"yggdrasill": {"graphs": {"lora": part}}, **extra})


def refusal(shown: Shown) -> str:
    assert shown.status == 400
    (facts,) = shown.answer["node_errors"].values()
    (error,) = facts["errors"]
    assert shown.answer["node_errors"].keys() == {"1"}
    return str(error["details"])


def ask(caller: Caller, path: str, body: Any) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", UI_HEADER: "1"}
    request = urllib.request.Request(f"{caller.server.url}/yggdrasill/ui/{path}", data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def place(caller: Caller, title: str, endpoint: str | None) -> None:
    """Place the group 3 of the workflow ``title``, or remove its placement."""
    part = {"graph": "", "kind": "group", "id": "3", "title": title}
    ask(caller, "place", {"workflow": title, "parts": [part], "place": endpoint})


def test_a_file_that_only_the_endpoint_has_runs_without_errors_in_the_log(a: Caller, b: Caller, name: str) -> None:
    write(b, f"{name}.safetensors", f"{name} of b")
    before = len(a.server.printed())
    shown = placed(a, prompt_of(f"{name}.safetensors"))
    assert shown.outputs["9"] == {"text": [f"{name} of b"]}
    assert "Value not in list" not in a.server.printed()[before:]
    assert "Failed to validate" not in a.server.printed()[before:]


def test_errors_of_nodes_that_run_here_are_still_logged(a: Caller, b: Caller, name: str) -> None:
    write(b, f"{name}.safetensors", f"{name} of b")
    prompt = {
        **prompt_of(f"{name}.safetensors"),
        "2": node("HabitReadLora", lora="nowhere.safetensors"),
        "8": node("PreviewAny", source=("2", 0)),
    }
    before = len(a.server.printed())
    assert placed(a, prompt).outputs["9"] == {"text": [f"{name} of b"]}
    printed = a.server.printed()[before:]
    assert "Failed to validate prompt for output 8" in printed
    assert "Failed to validate prompt for output 9" not in printed


def test_a_missing_file_is_one_refusal_with_its_folder_and_the_places_that_have_it(a: Caller, b: Caller, name: str) -> None:
    write(b, f"{name}-other.safetensors", "a list that is not empty")
    write(a, f"{name}.safetensors", f"{name} of a")
    said = refusal(placed(a, prompt_of(f"{name}.safetensors")))
    # 'a' is this server, which is also in its own registry
    assert f"lacks model file '{name}.safetensors' in 'loras' (available on this server and endpoint 'a')" in said
    assert "Copy the file to the endpoint, or place the part on 'a'." in said


def test_a_file_that_no_server_has_is_one_refusal(a: Caller, b: Caller, name: str) -> None:
    assert f"{name}.safetensors" in refusal(placed(a, prompt_of(f"{name}.safetensors")))


def test_other_bytes_under_one_name_are_refused_or_used_as_the_part_says(a: Caller, b: Caller, name: str) -> None:
    file = f"{name}.safetensors"
    write(a, file, f"{name} of a")
    write(b, file, f"{name} of b")
    said = refusal(placed(a, prompt_of(file)))
    assert "another file of that name" in said
    assert "models: theirs" in said
    assert placed(a, prompt_of(file), models="theirs").outputs["9"] == {"text": [f"{name} of b"]}
    chosen: dict[str, Any] = {"extra_pnginfo": {"workflow": {"nodes": [], "links": [], "extra": {"yggdrasill": {"models": "theirs"}}}}}
    assert placed(a, prompt_of(file), **chosen).outputs["9"] == {"text": [f"{name} of b"]}


def test_an_empty_file_of_that_name_does_not_block(a: Caller, b: Caller, name: str) -> None:
    file = f"{name}.safetensors"
    write(a, file, "")
    write(b, file, f"{name} of b")
    assert placed(a, prompt_of(file)).outputs["9"] == {"text": [f"{name} of b"]}


@pytest.mark.parametrize("only_there", [True, False], ids=["only there", "on both"])
def test_a_path_of_another_system_means_the_same_file(a: Caller, b: Caller, name: str, only_there: bool) -> None:
    for caller in (b,) if only_there else (a, b):
        write(caller, f"sub/{name}.safetensors", name)
    before = len(a.server.printed())
    assert placed(a, prompt_of(f"sub\\{name}.safetensors")).outputs["9"] == {"text": [name]}
    assert "Value not in list" not in a.server.printed()[before:]


def test_a_path_in_a_widget_with_fields_is_translated_and_free_text_is_not(a: Caller, b: Caller, name: str) -> None:
    for caller in (a, b):
        write(caller, f"sub/{name}.safetensors", name)
    path = f"sub\\{name}.safetensors"
    apply = {"class_type": "HabitApply", "inputs": {"text": path, "lora_1": {"on": True, "lora": path}}}
    shown = placed(a, {"1": apply, "9": node("PreviewAny", source=("1", 0))})
    assert json.loads(shown.outputs["9"]["text"][0]) == [path, [name]]


def test_the_files_of_another_kind_of_folder_do_not_count(a: Caller, b: Caller, name: str) -> None:
    file = f"{name}.safetensors"
    write(a, file, name)
    write(b, file, name, "checkpoints")
    apply = {"class_type": "HabitApply", "inputs": {"text": "", "lora_1": {"on": True, "lora": file}}}
    assert f"lacks model file '{file}' in 'loras'" in refusal(placed(a, {"1": apply, "9": node("PreviewAny", source=("1", 0))}))


def test_another_file_of_that_name_in_another_kind_of_folder_does_not_block(a: Caller, b: Caller, name: str) -> None:
    file = f"{name}.safetensors"
    for caller, content in ((a, "here"), (b, "there")):
        write(caller, file, name)
        write(caller, file, content, "checkpoints")
    assert placed(a, prompt_of(file)).outputs["9"] == {"text": [name]}


def test_the_lists_of_placed_nodes_are_those_of_the_endpoint(a: Caller, b: Caller, name: str) -> None:
    write(b, f"{name}.safetensors", name)
    workflow = {
        "nodes": [{"id": 1, "type": "HabitReadLora", "pos": [10, 10], "size": [200, 60]}, {"id": 2, "type": "HabitReadLora", "pos": [900, 0], "size": [200, 60]}],
        "links": [],
        "id": name,
        "groups": [{"id": 3, "title": name, "bounding": [0, -60, 400, 300]}],
    }  # fmt: skip
    nodes = {"1": "HabitReadLora", "2": "HabitReadLora"}
    assert ask(a, "lists", {"nodes": nodes, "workflow": workflow}) == {"nodes": {}, "lists": {}}
    place(a, name, "b")
    try:
        found = ask(a, "lists", {"nodes": nodes, "workflow": workflow, "fresh": True})
    finally:
        place(a, name, None)
    assert found["nodes"] == {"1": "b"}
    assert f"{name}.safetensors" in found["lists"]["b"]["HabitReadLora"]["lora"]


def test_preflight_reports_files_that_differ_and_the_choice(a: Caller, b: Caller, name: str) -> None:
    file = f"{name}.safetensors"
    write(a, file, f"{name} of a")
    write(b, file, f"{name} of b")
    workflow: dict[str, Any] = {
        "nodes": [{"id": 1, "type": "HabitReadLora", "pos": [10, 10], "size": [200, 60]}],
        "links": [],
        "id": name,
        "groups": [{"id": 3, "title": name, "bounding": [0, -60, 400, 300]}],
    }
    place(a, name, "b")
    try:
        found = ask(a, "preflight", {"prompt": prompt_of(file), "workflow": workflow})
        chosen = ask(a, "preflight", {"prompt": prompt_of(file), "workflow": {**workflow, "extra": {"yggdrasill": {"models": "theirs"}}}})
    finally:
        place(a, name, None)
    (studio,) = found["parts"][0]["places"]
    assert (studio["missing"], studio["different"]) == ([], [{"name": file, "folder": "loras"}])
    assert (found["their_models"], found["parts"][0]["models"]) == (False, "same")
    assert (chosen["their_models"], chosen["parts"][0]["models"]) == (True, "theirs")


def test_preflight_names_a_place_that_has_the_missing_file_since_a_moment(a: Caller, b: Caller, name: str) -> None:
    workflow: dict[str, Any] = {
        "nodes": [{"id": 1, "type": "HabitReadLora", "pos": [10, 10], "size": [200, 60]}],
        "links": [],
        "id": name,
        "groups": [{"id": 3, "title": name, "bounding": [0, -60, 400, 300]}],
    }
    file = f"{name}.safetensors"
    place(a, name, "b")
    try:
        before = ask(a, "preflight", {"prompt": prompt_of(file), "workflow": workflow})
        write(a, file, f"{name} of a")
        after = ask(a, "preflight", {"prompt": prompt_of(file), "workflow": workflow})
    finally:
        place(a, name, None)
    # 'a' is this server, which is also in its own registry
    assert [found["parts"][0]["places"][0]["missing"][0]["at"] for found in (before, after)] == [[], ["a"]]
