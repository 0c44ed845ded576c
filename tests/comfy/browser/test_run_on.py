"""Placing a part in the editor: the registry and the badges change, the workflow does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samples.editor import Editor
from yggdrasill.foundation.config import read_document

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SUBGRAPH = """([nodes, title, x, y]) => {
  const { node } = app.graph.convertToSubgraph(new Set(nodes.map((id) => app.graph.getNodeById(id))));
  Object.assign(node, { title, pos: [x, y] });
  return Number(node.id);
}"""
GROUP = (
    "([title, box]) => { const g = new LiteGraph.LGraphGroup(title); g.pos = box.slice(0, 2); g.size = box.slice(2); app.graph.add(g); }"
)


def draw(editor: Editor) -> tuple[int, int]:
    """Draw a subgraph Refine and a group Enlarge with one node; return the ids of the subgraph node and of the node in the group."""
    image = editor.add("EmptyImage", 60, 60, width=32, height=32)
    blur, invert = editor.add("ImageBlur", 420, 60), editor.add("ImageInvert", 420, 240)
    shown = editor.add("PreviewImage", 760, 60)
    editor.link(image, 0, blur, "image")
    editor.link(blur, 0, invert, "image")
    editor.link(invert, 0, shown, "images")
    refine = int(editor.page.evaluate(SUBGRAPH, [[blur, invert], "Refine", 420, 60]))
    scale = editor.add("ImageScaleBy", 60, 420)
    editor.link(image, 0, scale, "image")
    editor.link(scale, 0, editor.add("PreviewImage", 460, 420), "images")
    editor.page.evaluate(GROUP, ["Enlarge", [40, 340, 360, 220]])
    return refine, scale


def place_of(editor: Editor, x: float, y: float) -> list[float]:
    """Return the position of a canvas point on the page."""
    found: list[float] = editor.page.evaluate(
        "([x, y]) => { const box = app.canvas.canvas.getBoundingClientRect(); const at = app.canvas.ds.convertOffsetToCanvas([x, y]);"
        " return [box.left + at[0], box.top + at[1]]; }",
        [x, y],
    )
    return found


def click(editor: Editor, x: float, y: float, **options: Any) -> None:
    """Click a point of the canvas, drawing it first because hit testing uses the drawn items."""
    editor.page.evaluate("() => app.canvas.draw(true, true)")
    editor.page.mouse.click(*place_of(editor, x, y), **options)
    editor.page.wait_for_timeout(350)


def select(editor: Editor, *points: tuple[float, float]) -> None:
    """Click a node, and the others with Control held."""
    for number, point in enumerate(points):
        if number == 1:
            editor.page.keyboard.down("Control")
        click(editor, *point)
    editor.page.keyboard.up("Control")
    editor.wait_until(lambda: editor.page.evaluate("() => Object.keys(app.canvas.selected_nodes).length") == len(points))


def open_tools(editor: Editor) -> None:
    """Press "Run on" in the toolbox of the selection."""
    editor.page.get_by_test_id("selection-toolbox").get_by_role("button", name="Run the selection on an endpoint").click()
    editor.page.get_by_role("menu", name="Run on").wait_for()


@pytest.fixture
def drawn(editor: Editor, registry: Path) -> tuple[int, int]:
    """The workflow on the canvas, after the page has read the current registry."""
    editor.page.mouse.move(700, 300)
    editor.page.mouse.move(720, 320)
    found = draw(editor)
    editor.page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    editor.page.wait_for_timeout(700)
    return found


def graphs(file: Path) -> dict[str, Any]:
    return dict(read_document(file)["graphs"])


def test_the_menu_of_a_subgraph_edits_the_registry_and_not_the_workflow(editor: Editor, drawn: tuple[int, int], registry: Path) -> None:
    before = editor.page.evaluate("() => JSON.stringify(app.graph.serialize())")
    click(editor, 480, 50, button="right")
    editor.page.locator(".litemenu-entry", has_text="Run on").click()
    editor.page.locator(".litemenu-entry", has_text="studio").click()
    editor.wait_until(lambda: graphs(registry) == {"Refine": "studio"})
    editor.wait_until(lambda: "on studio" in editor.badges(drawn[0]))
    assert editor.page.evaluate("() => JSON.stringify(app.graph.serialize())") == before
    click(editor, 480, 50, button="right")
    editor.page.locator(".litemenu-entry", has_text="Run on").click()
    assert editor.page.locator(".litemenu-entry", has_text="✓").all_inner_texts() == ["✓ studio"]
    editor.page.locator(".litemenu-entry", has_text="This server").click()
    editor.wait_until(lambda: graphs(registry) == {"Refine": "local"})
    editor.wait_until(lambda: "on studio" not in editor.badges(drawn[0]))


def test_the_menu_of_the_canvas_places_the_group_under_the_pointer(editor: Editor, drawn: tuple[int, int], registry: Path) -> None:
    click(editor, 80, 352, button="right")
    editor.page.locator(".litemenu-entry", has_text="Run on").click()
    editor.page.locator(".litemenu-entry", has_text="studio").click()
    editor.wait_until(lambda: graphs(registry) == {"Enlarge": "studio"})
    editor.wait_until(lambda: "on studio" in editor.badges(drawn[1]))
    assert "on studio" not in editor.badges(drawn[0])
    # a node that is drawn out of the group is not placed any more
    editor.page.evaluate("(id) => { app.graph.getNodeById(id).pos = [60, 700]; app.canvas.setDirty(true, true); }", drawn[1])
    editor.page.wait_for_timeout(200)
    editor.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    editor.wait_until(lambda: "on studio" not in editor.badges(drawn[1]))


def test_run_on_in_the_menu_of_a_vue_node(editor: Editor, drawn: tuple[int, int], registry: Path) -> None:
    editor.draw_with(vue=True)
    click(editor, 470, 45, button="right")
    editor.page.get_by_role("menuitem", name="Run on").hover()
    editor.page.get_by_role("menuitem", name="studio").hover()
    editor.page.wait_for_timeout(300)
    editor.picture("run-on")
    editor.page.get_by_role("menuitem", name="studio").click()
    editor.wait_until(lambda: graphs(registry) == {"Refine": "studio"})
    editor.page.get_by_text("on studio", exact=True).wait_for()
    registry.write_text(registry.read_text(encoding="utf-8").replace("Refine: studio", "Refine: closed"), encoding="utf-8")
    editor.page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    editor.page.get_by_text("on closed", exact=True).wait_for()
    assert editor.page.get_by_text("on studio", exact=True).count() == 0


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_the_toolbox_of_a_group_places_it_by_keyboard(editor: Editor, drawn: tuple[int, int], registry: Path, vue: bool) -> None:
    editor.draw_with(vue=vue)
    click(editor, 80, 352)
    open_tools(editor)
    assert editor.page.get_by_role("menuitemradio").all_inner_texts() == ["This server", "closed", "studio"]
    assert editor.page.get_by_role("menuitemradio", checked=True).all_inner_texts() == ["This server"]
    editor.page.keyboard.press("ArrowUp")
    editor.page.keyboard.press("Escape")
    assert graphs(registry) == {}
    open_tools(editor)
    editor.page.keyboard.press("ArrowUp")
    editor.page.keyboard.press("Enter")
    editor.wait_until(lambda: graphs(registry) == {"Enlarge": "studio"})


def test_unnamed_nodes_become_a_group(editor: Editor, drawn: tuple[int, int], registry: Path) -> None:
    select(editor, (120, 410), (520, 410))
    open_tools(editor)
    editor.page.keyboard.press("ArrowUp")
    editor.page.keyboard.press("Enter")
    asked = editor.page.get_by_role("dialog").get_by_role("textbox")
    asked.fill("Enlarge")
    asked.press("Enter")
    editor.wait_until(lambda: any("called “Enlarge” already" in text for text in editor.messages()))
    assert graphs(registry) == {}
    open_tools(editor)
    editor.page.keyboard.press("ArrowUp")
    editor.page.keyboard.press("Enter")
    asked.fill("Bigger")
    asked.press("Enter")
    editor.wait_until(lambda: graphs(registry) == {"Bigger": "studio"})
    editor.wait_until(lambda: "on studio" in editor.badges(drawn[1]))
    frames = {group["title"]: group["bounding"] for group in editor.save()["groups"]}
    assert set(frames) == {"Enlarge", "Bigger"}


def test_unnamed_nodes_around_another_node_become_a_subgraph(editor: Editor, drawn: tuple[int, int], registry: Path) -> None:
    """A group would include the other node."""
    between = editor.add("EmptyImage", 760, 250)
    first, last = editor.add("ImageInvert", 600, 330), editor.add("ImageInvert", 1050, 330)
    editor.link(first, 0, last, "image")
    select(editor, (640, 320), (1080, 320))
    editor.page.evaluate("() => { void app.extensionManager.command.execute('Yggdrasill.RunOn'); }")
    editor.page.get_by_role("menu", name="Run on").wait_for()
    editor.page.keyboard.press("ArrowUp")
    editor.page.keyboard.press("Enter")
    assert "subgraph" in editor.page.get_by_role("dialog").inner_text()
    asked = editor.page.get_by_role("dialog").get_by_role("textbox")
    asked.fill("Twice")
    asked.press("Enter")
    editor.wait_until(lambda: graphs(registry) == {"Twice": "studio"})
    saved = editor.save()
    assert between in [node["id"] for node in saved["nodes"]]
    assert [node.get("title") for node in saved["nodes"] if len(str(node["type"])) == 36] == ["Refine", "Twice"]


def test_the_setting_hides_the_badges(editor: Editor, drawn: tuple[int, int], registry: Path) -> None:
    document = registry.read_text(encoding="utf-8").replace("graphs: {}", "graphs: {Refine: studio}")
    registry.write_text(document, encoding="utf-8")
    editor.page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    editor.wait_until(lambda: "on studio" in editor.badges(drawn[0]))
    for shown in (False, True):
        editor.page.evaluate("(shown) => app.extensionManager.setting.set('Yggdrasill.Badges', shown)", shown)
        editor.wait_until(lambda shown=shown: ("on studio" in editor.badges(drawn[0])) == shown)  # type: ignore[misc]


def test_a_pinned_subgraph_is_shown_and_the_registry_overrides_it(editor: Editor, drawn: tuple[int, int], registry: Path) -> None:
    workflow = editor.save()
    for node in workflow["nodes"]:
        if node["id"] == drawn[0]:
            node["properties"]["yggdrasill.endpoint"] = "closed"
    editor.load(json.loads(json.dumps(workflow)))
    editor.wait_until(lambda: "on closed" in editor.badges(drawn[0]))
    document = registry.read_text(encoding="utf-8").replace("graphs: {}", "graphs: {Refine: local}")
    registry.write_text(document, encoding="utf-8")
    editor.page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    editor.wait_until(lambda: "on closed" not in editor.badges(drawn[0]))
