"""The Remote Graph node in a real browser, between two real servers."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from samples.comfy_graphs import Prompt, graph_input, graph_output, node
from samples.editor import Editor
from samples.served_prompts import paint, soften

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NODE = "YggdrasillRemoteGraph"
COLOURS = itertools.count(0x336699)
"""Another one for each workflow, or ComfyUI would not run what it has run before."""


def broken() -> Prompt:
    """A graph that fails when it runs, because the picture has no alpha channel."""
    return {
        "1": graph_input("image", "IMAGE"),
        "2": node("ImageToMask", image=("1", 0), channel="alpha"),
        "3": graph_output("mask", ("2", 0), "MASK"),
    }


def remote(editor: Editor, graph: str, outputs: int, endpoint: str = "studio", x: int = 420) -> int:
    """Add a Remote Graph node, and wait for its sockets."""
    made = editor.add(NODE, x, 150, endpoint=endpoint, graph=graph)
    editor.wait_until(lambda: len(editor.outputs(made)) == outputs)
    return made


def linked(editor: Editor) -> int:
    """Add a Remote Graph node between an image and two previews."""
    made = remote(editor, "soften", 2)
    image = editor.add("EmptyImage", 80, 150, width=32, height=32, color=next(COLOURS))
    editor.link(image, 0, made, "image")
    for output in range(2):
        editor.link(made, output, editor.add("PreviewImage", 780, 150 + 240 * output), "images")
    return made


@pytest.fixture(autouse=True)
def served(pair: Any) -> None:
    pair.studio.deploy("soften", soften())


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_sockets_have_the_names_and_types_of_the_chosen_graph(editor: Editor, vue: bool) -> None:
    editor.draw_with(vue=vue)
    made = editor.add(NODE, 420, 150)
    assert (editor.inputs(made), editor.outputs(made)) == ([], [])
    editor.wait_until(lambda: editor.choices(made, "endpoint") == ["auto", "closed", "studio"])
    editor.set(made, "endpoint", "studio")
    editor.wait_until(lambda: "soften" in editor.choices(made, "graph"))
    editor.set(made, "graph", "soften")
    editor.wait_until(lambda: editor.outputs(made))
    assert editor.inputs(made) == [["image", "IMAGE", False]]
    assert editor.outputs(made) == [["soft", "IMAGE", 0], ["inverted", "IMAGE", 0]]
    stored = json.loads(editor.value(made, "contract"))
    assert [port["name"] for port in stored["outputs"]] == ["soft", "inverted"]


def test_a_graph_with_more_ports_than_sockets_is_shown_on_the_node(editor: Editor, pair: Any) -> None:
    pair.studio.deploy("wide", {"1": graph_input("x"), **{str(number): graph_output(f"y{number}", ("1", 0)) for number in range(2, 35)}})
    made = editor.add(NODE, 420, 150, endpoint="studio", graph="wide")
    editor.wait_until(lambda: "⚠ too many ports" in editor.badges(made))
    assert any("It has 33 outputs; a node supports at most 32." in text for text in editor.messages())
    assert editor.outputs(made) == []


def test_endpoint_and_graph_are_chosen_from_lists_with_the_mouse(editor: Editor) -> None:
    editor.draw_with(vue=True)
    made = editor.add(NODE, 420, 150)
    lists = editor.page.locator("[data-testid=widget-select-default-trigger]")
    editor.wait_until(lambda: "studio" in editor.choices(made, "endpoint"))
    lists.and_(editor.page.get_by_label("endpoint")).click()
    editor.page.get_by_role("option", name="studio").click()
    editor.wait_until(lambda: "soften" in editor.choices(made, "graph"))
    lists.and_(editor.page.get_by_label("graph")).click()
    editor.page.get_by_role("option", name="soften").click()
    editor.wait_until(lambda: editor.outputs(made))
    assert editor.page.get_by_text("inverted", exact=True).count() == 1


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_run_shows_progress_and_previews_on_the_node(editor: Editor, pair: Any, vue: bool) -> None:
    pair.studio.deploy("paint", paint())
    editor.draw_with(vue=vue)
    made = remote(editor, "paint", 1)
    text = editor.add("PrimitiveString", 80, 150, value=f"a lake, seen {'twice' if vue else 'once'}")
    editor.link(text, 0, made, "prompt")
    preview = editor.add("PreviewImage", 780, 150)
    editor.link(made, 0, preview, "images")
    editor.run()
    editor.wait_until(lambda: len(editor.heard("b_preview_with_metadata")) >= 2, 120)
    editor.page.wait_for_timeout(300)
    editor.picture("running-vue" if vue else "running")
    editor.wait_for_end()
    assert editor.heard("execution_error") == []
    steps = {
        nodes[str(made)]["value"] for told in editor.heard("progress_state") if (nodes := told["nodes"]).get(str(made), {}).get("max") == 8
    }
    assert len(steps) >= 3
    assert {told["node"] for told in editor.heard("b_preview_with_metadata")} == {str(made)}
    assert editor.page.evaluate("(id) => Boolean(app.nodeOutputs[id]?.images?.length)", preview)


def test_an_error_marks_the_node_and_names_the_failed_node(editor: Editor, pair: Any) -> None:
    pair.studio.deploy("broken", broken())
    made = remote(editor, "broken", 1)
    image = editor.add("EmptyImage", 80, 150, width=32, height=32)
    editor.link(image, 0, made, "image")
    mask = editor.add("MaskToImage", 780, 150)
    editor.link(made, 0, mask, "mask")
    editor.link(mask, 0, editor.add("PreviewImage", 980, 150), "images")
    editor.run()
    editor.wait_for_end()
    (error,) = editor.heard("execution_error")
    assert error["node_id"] == str(made)
    assert "ImageToMask" in error["exception_message"]
    assert editor.page.evaluate("() => String(app.lastExecutionError.node_id)") == str(made)
    editor.page.get_by_role("button", name="View details").click()
    # what other pages and panels said of it before is still somewhere, unseen
    editor.page.get_by_test_id("properties-panel").get_by_text("ImageToMask").first.wait_for()
    editor.page.wait_for_timeout(500)
    editor.picture("error")


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_saved_workflow_keeps_its_sockets_and_links_without_the_endpoint(editor: Editor, vue: bool) -> None:
    editor.draw_with(vue=vue)
    linked(editor)
    before = editor.save()
    workflow = json.loads(json.dumps(before).replace('"studio"', '"closed"'))
    editor.load(workflow)
    made = editor.chosen(NODE)
    assert editor.inputs(made) == [["image", "IMAGE", True]]
    assert editor.outputs(made) == [["soft", "IMAGE", 1], ["inverted", "IMAGE", 1]]
    editor.wait_until(lambda: "⚠ cannot be checked" in editor.badges(made))
    assert editor.save()["links"] == before["links"]
    prompt = editor.prompt()[str(made)]["inputs"]
    assert prompt["endpoint"] == "closed"
    assert isinstance(prompt["ports.p0"], list)


def test_a_reloaded_workflow_runs_as_it_did(editor: Editor) -> None:
    linked(editor)
    editor.load(editor.save())
    editor.run()
    editor.wait_for_end()
    assert editor.heard("execution_error") == []
    assert editor.heard("execution_success")


def test_a_replaced_graph_is_called_again_although_nothing_changed_locally(editor: Editor, pair: Any) -> None:
    made = linked(editor)
    editor.run()
    editor.wait_for_end()
    before = editor.prompt()
    pair.studio.deploy("soften", {**soften(), "2": node("ImageInvert", image=("1", 0))})
    editor.run()
    editor.wait_for_end()
    assert editor.prompt() == before
    assert str(made) in {each["node"] for each in editor.heard("executing")}


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_renamed_port_is_shown_on_the_node_until_it_is_updated(editor: Editor, pair: Any, vue: bool) -> None:
    editor.draw_with(vue=vue)
    linked(editor)
    workflow = editor.save()
    pair.studio.deploy("soften", soften("picture"))
    editor.load(workflow)
    made = editor.chosen(NODE)
    editor.wait_until(lambda: "⚠ contract changed" in editor.badges(made))
    assert any("input “image” was renamed to “picture”" in text for text in editor.messages())
    assert editor.inputs(made) == [["image", "IMAGE", True]]
    editor.page.wait_for_timeout(300)
    editor.picture("changed-vue" if vue else "changed")
    editor.run()
    editor.wait_for_end()
    (error,) = editor.heard("execution_error")
    assert error["node_id"] == str(made)
    assert re.search("picture.*image", error["exception_message"])
    editor.page.evaluate("(id) => app.graph.getNodeById(id).widgets.find((w) => w.type === 'button').callback()", made)
    assert editor.inputs(made) == [["picture", "IMAGE", True]]
    assert "⚠ contract changed" not in editor.badges(made)
    editor.run()
    editor.wait_for_end()
    assert editor.heard("execution_error") == []


@pytest.mark.parametrize("inside", [False, True], ids=["canvas", "subgraph"])
def test_a_port_renamed_later_is_shown_on_the_node_after_a_failed_run(editor: Editor, pair: Any, inside: bool) -> None:
    made = linked(editor)
    found = "(id) => app.graph.getNodeById(id)"
    if inside:
        around = editor.page.evaluate("(id) => Number(app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)])).node.id)", made)
        found, made = f"(id) => app.graph.getNodeById(id).subgraph._nodes.find((n) => n.comfyClass === '{NODE}')", around
    pair.studio.deploy("soften", soften("picture"))
    asked = len(editor.requests)
    editor.run()
    editor.wait_for_end()
    (error,) = editor.heard("execution_error")
    assert re.search("picture.*image", error["exception_message"])
    editor.wait_until(lambda: editor.page.evaluate(f"(id) => ({found})(id).widgets.some((w) => w.type === 'button')", made))
    assert any("input “image” was renamed to “picture”" in text for text in editor.messages())
    assert sum("/ui/contract?" in url for url in editor.requests[asked:]) == 1


def test_a_removed_port_loses_its_link_with_a_message(editor: Editor, pair: Any) -> None:
    made = linked(editor)
    pair.studio.deploy("soften", {key: value for key, value in soften().items() if key not in "23"})
    editor.set(made, "graph", "soften")
    editor.wait_until(lambda: len(editor.outputs(made)) == 1)
    assert editor.outputs(made) == [["inverted", "IMAGE", 1]]
    assert any("soft" in text for text in editor.wait_until(editor.messages))
    links = editor.prompt()
    assert [each["inputs"]["images"] for each in links.values() if each["class_type"] == "PreviewImage" and each["inputs"]] == [
        [str(made), 0]
    ]


_PLACE_OF = """([id, side, index]) => {
  const node = app.graph.getNodeById(id);
  const [x, y] = side === "input" ? node.getInputPos(index) : node.getOutputPos(index);
  const { scale, offset } = app.canvas.ds;
  const box = app.canvas.canvas.getBoundingClientRect();
  return [box.left + (x + offset[0]) * scale, box.top + (y + offset[1]) * scale];
}"""


def drag(editor: Editor, start: list[float], end: list[float]) -> None:
    """Drag with the mouse, in steps as a hand does."""
    mouse = editor.page.mouse
    mouse.move(*start)
    mouse.down()
    for step in range(1, 11):
        mouse.move(*(first + (last - first) * step / 10 for first, last in zip(start, end, strict=True)))
        editor.page.wait_for_timeout(20)
    mouse.up()
    editor.page.wait_for_timeout(200)


@pytest.mark.parametrize("loaded", [False, True], ids=["new", "loaded"])
def test_the_first_socket_takes_the_link_that_the_mouse_drops_on_it(editor: Editor, loaded: bool) -> None:
    made = remote(editor, "soften", 2)
    image = editor.add("EmptyImage", 80, 150, width=32, height=32, color=next(COLOURS))
    if loaded:
        editor.load(editor.save())
        editor.page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 120]; app.canvas.draw(true, true); }")
    editor.page.wait_for_timeout(500)
    slots = editor.page.evaluate("(id) => app.graph.getNodeById(id).inputs.map((slot) => [slot.name, slot.pos, slot.widget?.name])", made)
    index = next(number for number, slot in enumerate(slots) if slot[0] == "ports.p0")
    start = editor.page.evaluate(_PLACE_OF, [image, "output", 0])
    end = editor.page.evaluate(_PLACE_OF, [made, "input", index])
    drag(editor, start, end)
    assert editor.inputs(made) == [["image", "IMAGE", True]], slots
    # from the socket back to an output: the link that is there moves with the pointer and can be dropped again
    editor.page.evaluate("([id, index]) => app.graph.getNodeById(id).disconnectInput(index)", [made, index])
    drag(editor, end, start)
    assert editor.inputs(made) == [["image", "IMAGE", True]], slots
