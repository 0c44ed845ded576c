"""The workflows for the editor as files: both forms, nothing of where they run, and a layout that can be read."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from samples.comfy import ROOT
from samples.shipped_workflows import FOLDER, NAMES, PLACES, api_form, editor_form, without_notes

SIZE = 150_000
TITLE = 30


def node_ids() -> set[str]:
    """The ids of the extension's nodes."""
    files = [*(ROOT / "nodes").glob("*.py"), ROOT / "remote" / "comfy_ports.py"]
    return {name for file in files for name in re.findall(r'"(Yggdrasill\w+)"', file.read_text("utf-8"))}


def test_there_is_a_workflow_for_each_of_the_levels() -> None:
    assert set(NAMES) == set(PLACES)
    assert {path.stem for path in (FOLDER / "api").glob("*.json")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_have_the_same_nodes(name: str) -> None:
    drawn = {str(each["id"]): each["type"] for each in without_notes(editor_form(name))}
    assert {key: each["class_type"] for key, each in api_form(name).items()} == drawn


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_links_nodes_that_are_there_and_names_nodes_of_this_extension_rightly(name: str) -> None:
    prompt, known = api_form(name), node_ids()
    for each in prompt.values():
        assert not each["class_type"].startswith("Yggdrasill") or each["class_type"] in known
        assert all(value[0] in prompt for value in each["inputs"].values() if isinstance(value, list))


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_says_what_it_shows_and_not_where_it_runs(name: str) -> None:
    workflow = editor_form(name)
    (note,) = [each for each in workflow["nodes"] if each["type"] == "MarkdownNote"]
    assert note["widgets_values"][0].startswith("### ")
    for form in (without_notes(workflow), api_form(name)):
        text = json.dumps(form)
        assert not re.search(r"https?:|127\.0\.0\.1|localhost|token", text)
    remote = [each["inputs"]["endpoint"] for each in api_form(name).values() if each["class_type"] == "YggdrasillRemoteGraph"]
    assert set(remote) <= {"auto"}
    for place in PLACES[name]:
        assert place.split("/")[0] in json.dumps(workflow) or name == "terrain-world"


@pytest.mark.parametrize("name", NAMES)
def test_nodes_stand_apart_and_go_from_left_to_right(name: str) -> None:
    workflow = editor_form(name)
    boxes: dict[int, Any] = {
        each["id"]: (*each["pos"], each["pos"][0] + each["size"][0], each["pos"][1] + each["size"][1]) for each in workflow["nodes"]
    }
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] - TITLE or b[3] <= a[1] - TITLE
        assert apart, (one, other)
    for _, source, _, target, _, _ in workflow["links"]:
        assert boxes[source][0] < boxes[target][0], (source, target)


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_small_picture_on_the_page_that_tells_of_it_and_one_beside_it(name: str) -> None:
    page = (ROOT / "docs" / "workflows.md").read_text(encoding="utf-8")
    assert f"`{name}`" in page
    assert f"pictures/workflow-{name}.png" in page
    assert (ROOT / "docs" / "pictures" / f"workflow-{name}.png").stat().st_size < SIZE
    assert (FOLDER / f"{name}.jpg").stat().st_size < SIZE
