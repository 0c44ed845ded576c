"""Placing a part in the editor: the placements of the workflow and the badges change, the workflow and endpoints.yaml do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samples.comfy_graphs import placed
from samples.editor import Editor

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
def drawn(editor: Editor, placements: Path) -> tuple[int, int]:
    """The workflow on the canvas, after the page has read the current placements."""
    editor.page.mouse.move(700, 300)
    editor.page.mouse.move(720, 320)
    found = draw(editor)
    editor.page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    editor.page.wait_for_timeout(700)
    return found


def test_the_menu_of_a_subgraph_places_it_and_changes_neither_the_workflow_nor_the_registry(
    editor: Editor, drawn: tuple[int, int], placements: Path, registry: Path
) -> None:
    by_hand = "graphs:\n  # everything of that kind\n  Other: {replicas: [studio, closed], fallback: local}   # with a fallback\n"
    registry.write_text(registry.read_text(encoding="utf-8").replace("graphs: {}\n", by_hand), encoding="utf-8")
    written = registry.read_bytes()
    before = editor.page.evaluate("() => JSON.stringify(app.graph.serialize())")
    click(editor, 480, 50, button="right")
    editor.page.locator(".litemenu-entry", has_text="Run on").click()
    editor.page.locator(".litemenu-entry", has_text="studio").click()
    editor.wait_until(lambda: placed(placements) == {"Refine": "studio"})
    editor.wait_until(lambda: "on studio" in editor.badges(drawn[0]))
    assert editor.page.evaluate("() => JSON.stringify(app.graph.serialize())") == before
    click(editor, 480, 50, button="right")
    editor.page.locator(".litemenu-entry", has_text="Run on").click()
    assert editor.page.locator(".litemenu-entry", has_text="✓").all_inner_texts() == ["✓ studio"]
    editor.page.locator(".litemenu-entry", has_text="This server").click()
    editor.wait_until(lambda: placed(placements) == {})
    editor.wait_until(lambda: "on studio" not in editor.badges(drawn[0]))
    assert registry.read_bytes() == written


def test_the_menu_of_the_canvas_places_the_group_under_the_pointer(editor: Editor, drawn: tuple[int, int], placements: Path) -> None:
    click(editor, 80, 352, button="right")
    editor.page.locator(".litemenu-entry", has_text="Run on").click()
    editor.page.locator(".litemenu-entry", has_text="studio").click()
    editor.wait_until(lambda: placed(placements) == {"Enlarge": "studio"})
    editor.wait_until(lambda: "on studio" in editor.badges(drawn[1]))
    assert "on studio" not in editor.badges(drawn[0])
    # a node that is drawn out of the group is not placed any more
    editor.page.evaluate("(id) => { app.graph.getNodeById(id).pos = [60, 700]; app.canvas.setDirty(true, true); }", drawn[1])
    editor.page.wait_for_timeout(200)
    editor.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    editor.wait_until(lambda: "on studio" not in editor.badges(drawn[1]))


def test_run_on_in_the_menu_of_a_vue_node(editor: Editor, drawn: tuple[int, int], placements: Path) -> None:
    editor.draw_with(vue=True)
    click(editor, 470, 45, button="right")
    editor.page.get_by_role("menuitem", name="Run on").hover()
    editor.page.get_by_role("menuitem", name="studio").hover()
    editor.page.wait_for_timeout(300)
    editor.picture("run-on")
    editor.page.get_by_role("menuitem", name="studio").click()
    editor.wait_until(lambda: placed(placements) == {"Refine": "studio"})
    editor.page.get_by_text("on studio", exact=True).wait_for()
    text = placements.read_text(encoding="utf-8").replace('"placement": "studio"', '"placement": "closed"')
    placements.write_text(text, encoding="utf-8")
    editor.page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    editor.page.get_by_text("on closed", exact=True).wait_for()
    assert editor.page.get_by_text("on studio", exact=True).count() == 0


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_the_toolbox_of_a_group_places_it_by_keyboard(editor: Editor, drawn: tuple[int, int], placements: Path, vue: bool) -> None:
    editor.draw_with(vue=vue)
    click(editor, 80, 352)
    open_tools(editor)
    assert editor.page.get_by_role("menuitemradio").all_inner_texts() == ["This server", "closed", "studio"]
    assert editor.page.get_by_role("menuitemradio", checked=True).all_inner_texts() == ["This server"]
    editor.page.keyboard.press("ArrowUp")
    editor.page.keyboard.press("Escape")
    assert placed(placements) == {}
    open_tools(editor)
    editor.page.keyboard.press("ArrowUp")
    editor.page.keyboard.press("Enter")
    editor.wait_until(lambda: placed(placements) == {"Enlarge": "studio"})


def test_unnamed_nodes_become_a_group(editor: Editor, drawn: tuple[int, int], placements: Path) -> None:
    select(editor, (120, 410), (520, 410))
    open_tools(editor)
    editor.page.keyboard.press("ArrowUp")
    editor.page.keyboard.press("Enter")
    asked = editor.page.get_by_role("dialog").get_by_role("textbox")
    asked.fill("Enlarge")
    asked.press("Enter")
    editor.wait_until(lambda: any("already has a part named “Enlarge”" in text for text in editor.messages()))
    assert placed(placements) == {}
    open_tools(editor)
    editor.page.keyboard.press("ArrowUp")
    editor.page.keyboard.press("Enter")
    asked.fill("Bigger")
    asked.press("Enter")
    editor.wait_until(lambda: placed(placements) == {"Bigger": "studio"})
    editor.wait_until(lambda: "on studio" in editor.badges(drawn[1]))
    frames = {group["title"]: group["bounding"] for group in editor.save()["groups"]}
    assert set(frames) == {"Enlarge", "Bigger"}


def test_unnamed_nodes_around_another_node_become_a_subgraph(editor: Editor, drawn: tuple[int, int], placements: Path) -> None:
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
    editor.wait_until(lambda: placed(placements) == {"Twice": "studio"})
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


LOAD = "(workflow) => app.loadGraphData(workflow, true, true, `${workflow.id}.json`)"


def grouped(workflow_id: str, number: int = 2, color: int = 0) -> dict[str, Any]:
    """Return a workflow with images, each in a group of the title that groups have by default."""
    kinds = [(1 + 2 * row, "EmptyImage", 0) for row in range(number)] + [(2 + 2 * row, "PreviewImage", 350) for row in range(number)]
    nodes = []
    for node_id, kind, x in sorted(kinds):
        y = 450 * ((node_id - 1) // 2)
        widgets = [32, 32, 1, color + node_id] if kind == "EmptyImage" else []
        image = [{"name": "images", "type": "IMAGE", "link": node_id // 2}] if kind == "PreviewImage" else []
        outputs = [{"name": "IMAGE", "type": "IMAGE", "links": [(node_id + 1) // 2]}] if kind == "EmptyImage" else []
        nodes.append(
            {"id": node_id, "type": kind, "pos": [x, y], "size": [250, 200], "flags": {}, "order": node_id, "mode": 0, "inputs": image,
             "outputs": outputs, "properties": {}, "widgets_values": widgets}
        )  # fmt: skip
    links = [[row + 1, 1 + 2 * row, 0, 2 + 2 * row, 0, "IMAGE"] for row in range(number)]
    groups = [{"id": row + 1, "title": "Group", "bounding": [-20, 450 * row - 80, 300, 320], "flags": {}} for row in range(number)]
    return {"id": workflow_id, "version": 0.4, "last_node_id": 2 * number, "last_link_id": number, "nodes": nodes, "links": links,
            "groups": groups, "config": {}, "extra": {}}  # fmt: skip


def signs(editor: Editor, *nodes: int) -> list[str]:
    """Return the text of each node's badge with a place, or an empty text."""
    return [next((text for text in editor.badges(node) if "on " in text), "") for node in nodes]


def place_group(editor: Editor, number: int, endpoint: str) -> None:
    """Choose an endpoint for a group with the command and the keyboard."""
    editor.page.evaluate(
        "(id) => { app.canvas.deselectAll(); app.canvas.select(app.graph._groups.find((group) => group.id === id));"
        " void app.extensionManager.command.execute('Yggdrasill.RunOn'); }",
        number,
    )
    menu = editor.page.get_by_role("menu", name="Run on")
    menu.wait_for()
    menu.get_by_role("menuitemradio", name=endpoint, exact=True).click()


@pytest.fixture
def ready(editor: Editor, placements: Path) -> Editor:
    """The editor after an interaction, with which it loads what placement needs."""
    editor.page.mouse.move(700, 300)
    editor.page.mouse.move(720, 320)
    editor.page.wait_for_timeout(700)
    return editor


def test_a_part_that_is_placed_in_one_workflow_stays_local_in_another_with_its_title(ready: Editor, pair: Any) -> None:
    ready.page.evaluate(LOAD, grouped("11111111-1111-4111-8111-111111111111"))
    place_group(ready, 2, "studio")
    ready.wait_until(lambda: signs(ready, 1, 2, 3, 4) == ["", "", "on studio", ""])
    calls = len(pair.studio.jobs(limit=1000))
    ready.run()
    ready.wait_for_end()
    assert len(pair.studio.jobs(limit=1000)) == calls + 1
    ready.page.evaluate(LOAD, grouped("22222222-2222-4222-8222-222222222222", color=70))
    ready.wait_until(lambda: signs(ready, 1, 2, 3, 4) == [""] * 4)
    ready.run()
    ready.wait_for_end()
    assert len(pair.studio.jobs(limit=1000)) == calls + 1
    ready.page.evaluate(LOAD, grouped("11111111-1111-4111-8111-111111111111"))
    ready.wait_until(lambda: signs(ready, 1, 2, 3, 4) == ["", "", "on studio", ""])


def test_a_copy_of_a_workflow_has_its_placements_and_changes_them_alone(ready: Editor, placements: Path) -> None:
    ready.page.evaluate(LOAD, grouped("33333333-3333-4333-8333-333333333333"))
    place_group(ready, 1, "studio")
    ready.wait_until(lambda: signs(ready, 1, 3) == ["on studio", ""])
    ready.page.evaluate("() => app.extensionManager.command.execute('Comfy.DuplicateWorkflow')")
    ready.wait_until(lambda: ready.page.evaluate("() => app.graph.id") != "33333333-3333-4333-8333-333333333333")
    ready.wait_until(lambda: signs(ready, 1, 3) == ["on studio", ""])
    place_group(ready, 1, "This server")
    ready.wait_until(lambda: signs(ready, 1, 3) == ["", ""])
    ready.page.evaluate(LOAD, grouped("33333333-3333-4333-8333-333333333333"))
    ready.wait_until(lambda: signs(ready, 1, 3) == ["on studio", ""])


def test_a_key_of_all_nodes_is_shown_and_overridden_in_one_workflow(ready: Editor, registry: Path) -> None:
    registry.write_text(registry.read_text(encoding="utf-8").replace("graphs: {}", "graphs: {'*': studio}"), encoding="utf-8")
    ready.page.evaluate(LOAD, grouped("44444444-4444-4444-8444-444444444444"))
    # what previews an image runs where the user is
    ready.wait_until(lambda: signs(ready, 1, 2, 3, 4) == ["on studio", "", "on studio", ""])
    place_group(ready, 1, "This server")
    ready.wait_until(lambda: signs(ready, 1, 2, 3, 4) == ["", "", "on studio", ""])
    place_group(ready, 1, "studio")
    ready.wait_until(lambda: signs(ready, 1, 2, 3, 4) == ["on studio", "", "on studio", ""])


def test_a_key_by_hand_of_two_groups_with_one_title_places_both(ready: Editor, registry: Path) -> None:
    registry.write_text(registry.read_text(encoding="utf-8").replace("graphs: {}", "graphs: {Group: studio}"), encoding="utf-8")
    ready.page.evaluate(LOAD, grouped("55555555-5555-4555-8555-555555555555"))
    ready.wait_until(lambda: signs(ready, 1, 2, 3, 4) == ["on studio", "", "on studio", ""])
    ready.run()
    ready.wait_for_end()


def test_a_nested_subgraph_a_collapsed_node_and_what_contains_them_have_signs(
    editor: Editor, drawn: tuple[int, int], placements: Path
) -> None:
    refine, scale = drawn
    editor.page.evaluate("(id) => app.graph.getNodeById(id).collapse()", scale)
    nested = """(id) => { const graph = app.graph.getNodeById(id).subgraph;
      const { node } = graph.convertToSubgraph(new Set([graph._nodes.find(({ type }) => type === 'ImageInvert')]));
      node.title = 'Inner';
      app.canvas.setGraph(graph);
      app.canvas.deselectAll();
      app.canvas.select(node);
      void app.extensionManager.command.execute('Yggdrasill.RunOn');
      return Number(node.id); }"""
    inner = int(editor.page.evaluate(nested, refine))
    editor.page.get_by_role("menu", name="Run on").get_by_role("menuitemradio", name="studio", exact=True).click()
    shown = "(id) => app.canvas.graph.getNodeById(id).badges.map((badge) => (typeof badge === 'function' ? badge() : badge).text)"
    editor.wait_until(lambda: "on studio" in editor.page.evaluate(shown, inner))
    editor.page.evaluate("() => app.canvas.setGraph(app.graph)")
    editor.wait_until(lambda: signs(editor, refine, scale) == ["partly on studio", ""])
    (group,) = editor.page.evaluate("() => app.graph._groups.map(({ id }) => id)")
    place_group(editor, group, "studio")
    editor.wait_until(lambda: signs(editor, refine, scale) == ["partly on studio", "on studio"])
    assert placed(placements) == {"Inner": "studio", "Enlarge": "studio"}
