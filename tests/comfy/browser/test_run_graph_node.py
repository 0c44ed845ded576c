"""The Run Graph node in a real browser: its sockets follow the composed graph before anything has run."""

from __future__ import annotations

import json
from typing import Any

from samples.editor import Editor


def test_the_sockets_follow_the_graph_and_it_runs(opened: Editor) -> None:
    editor = opened.empty()
    graph = editor.add("YggdrasillLoadGraph", 40, 40, source="template: upscale")
    run = editor.add("YggdrasillRunGraph", 520, 40)
    editor.link(graph, 0, run, "graph")
    editor.wait_until(lambda: editor.inputs(run) == [["graph", "YGGDRASILL_GRAPH,YGGDRASILL_PIPELINE", True], ["image", "IMAGE", False]])
    assert editor.outputs(run) == [["image", "IMAGE", 0]]

    picture = editor.add("EmptyImage", 40, 400, width=16, height=8)
    shown = editor.add("PreviewImage", 900, 40)
    editor.link(picture, 0, run, "image")
    editor.link(run, 0, shown, "images")
    editor.run()
    editor.wait_for_end()
    assert not editor.heard("execution_error")

    saved = editor.save()
    editor.empty()
    editor.load(saved)
    editor.page.wait_for_timeout(600)
    again = editor.chosen("YggdrasillRunGraph")
    assert editor.inputs(again)[1] == ["image", "IMAGE", True]
    assert editor.outputs(again) == [["image", "IMAGE", 1]]
    links = {name: value for name, value in editor.prompt()[str(again)]["inputs"].items() if isinstance(value, list)}
    assert set(links) == {"graph", "ports.p0"}


WRAP = """(ids) => {
  const made = app.graph.convertToSubgraph(new Set(ids.map((id) => app.graph.getNodeById(id))));
  return Number(made.node.id);
}"""
INSIDE = "(id) => app.graph.getNodeById(id).subgraph._nodes.find((n) => n.comfyClass === 'YggdrasillRunGraph')"


def inner_inputs(editor: Editor, around: int) -> list[str]:
    """Return the labels of the sockets of the Run Graph node inside a subgraph."""
    found: list[str] = editor.page.evaluate(f"(id) => ({INSIDE})(id).inputs.filter((i) => !i.widget).map((i) => i.label ?? i.name)", around)
    return found


def test_inside_a_subgraph_the_sockets_follow_a_graph_from_outside(opened: Editor) -> None:
    editor = opened.empty()
    block = editor.add("YggdrasillAddBlock", 40, 40, block="image/adjust", name="b")
    connect = editor.add("YggdrasillConnect", 460, 40)
    run = editor.add("YggdrasillRunGraph", 860, 40)
    editor.link(block, 0, connect, "graph")
    editor.link(connect, 0, run, "graph")
    editor.wait_until(lambda: [label for label, _, _ in editor.inputs(run)] == ["graph", "image"])
    around = editor.page.evaluate(WRAP, [run])
    editor.wait_until(lambda: inner_inputs(editor, around) == ["graph", "image"])
    editor.set(block, "block", "image/blend")
    editor.page.evaluate("() => app.api.dispatchCustomEvent('graphChanged', {})")
    editor.wait_until(lambda: inner_inputs(editor, around) == ["graph", "below", "above", "mask"])


def blended(editor: Editor) -> tuple[int, int, int]:
    """Add a block, a node that names its output ``sheet``, and a node that runs it."""
    block = editor.add("YggdrasillAddBlock", 40, 40, block="image/blend", name="b")
    connect = editor.add("YggdrasillConnect", 460, 40, connections="b.image -> sheet")
    run = editor.add("YggdrasillRunGraph", 860, 40)
    editor.link(block, 0, connect, "graph")
    editor.link(connect, 0, run, "graph")
    return block, connect, run


def test_the_sockets_follow_a_graph_composed_in_a_subgraph(opened: Editor) -> None:
    editor = opened.empty()
    block, connect, run = blended(editor)
    editor.wait_until(lambda: editor.outputs(run) == [["sheet", "IMAGE", 0]])
    around = editor.page.evaluate(WRAP, [block, connect])
    editor.page.evaluate(
        "(id) => { const node = app.graph.getNodeById(id).subgraph._nodes.find((n) => n.comfyClass === 'YggdrasillConnect');"
        " node.widgets.find((w) => w.name === 'connections').value = 'b.image -> page';"
        " app.api.dispatchCustomEvent('graphChanged', {}); }",
        around,
    )
    editor.wait_until(lambda: editor.outputs(run) == [["page", "IMAGE", 0]])


def test_another_graph_changes_the_sockets(opened: Editor) -> None:
    editor = opened.empty()
    _, connect, run = blended(editor)
    editor.wait_until(lambda: [label for label, _, _ in editor.inputs(run)] == ["graph", "below", "above", "mask"])
    assert editor.outputs(run) == [["sheet", "IMAGE", 0]]
    editor.set(connect, "connections", "below -> b.below\nbelow -> b.above\nb.image -> sheet")
    editor.page.evaluate("() => app.api.dispatchCustomEvent('graphChanged', {})")
    editor.wait_until(lambda: [label for label, _, _ in editor.inputs(run)] == ["graph", "below", "mask"])


def test_a_blocks_settings_are_widgets_that_change_with_its_type(opened: Editor) -> None:
    editor = opened.empty()
    block = editor.add("YggdrasillAddBlock", 40, 40, block="image/adjust")

    def widgets() -> list[str]:
        found: list[str] = editor.page.evaluate("(id) => app.graph.getNodeById(id).widgets.map((w) => w.name)", block)
        return [name for name in found if name.startswith("block.")]

    assert widgets() == ["block.gamma", "block.contrast", "block.brightness", "block.saturation"]
    editor.set(block, "block", "image/grid")
    assert widgets() == ["block.columns", "block.gap", "block.background"]
    editor.set(block, "block.gap", 3)
    prompt: Any = editor.prompt()[str(block)]["inputs"]
    assert prompt["block"] == "image/grid"
    assert prompt["block.gap"] == 3
    assert json.dumps(prompt)


def test_a_world_that_runs_shows_its_passes_and_its_picture(opened: Editor) -> None:
    editor = opened.empty()
    world = editor.add("YggdrasillWorld", 40, 40, source="template: canon_2.0")
    editor.set(world, "source.size", 64)
    run = editor.add("YggdrasillRunWorld", 520, 40, steps=3, keep=False)
    editor.link(world, 0, run, "world")
    editor.run()
    editor.wait_for_end()
    assert not editor.heard("execution_error")
    assert {each["node"] for each in editor.heard("b_preview_with_metadata")} == {str(run)}
    counts = [each["nodes"].get(str(run), {}) for each in editor.heard("progress_state")]
    assert any(count.get("max") == 15 and 0 < count.get("value", 0) < 15 for count in counts)
