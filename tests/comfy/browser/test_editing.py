"""Editing a Remote Graph node: in subgraphs, copied, cloned, undone, cancelled."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from samples.comfy_graphs import graph_input, graph_output, until
from samples.editor import Editor
from samples.served_prompts import paint, soften
from yggdrasill.remote.loop_thread import loop_thread

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NODE = "YggdrasillRemoteGraph"
COLOURS = itertools.count(0x993311)
SOCKETS = ([["image", "IMAGE"]], [["soft", "IMAGE"], ["inverted", "IMAGE"]])
BOTH = pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])


@pytest.fixture(autouse=True)
def served(pair: Any) -> None:
    pair.studio.deploy("soften", soften())


def remote(editor: Editor, graph: str = "soften", outputs: int = 2) -> int:
    """Add a Remote Graph node, and wait for its sockets."""
    made = editor.add(NODE, 420, 150, endpoint="studio", graph=graph)
    editor.wait_until(lambda: len(editor.outputs(made)) == outputs)
    return made


def linked(editor: Editor) -> int:
    """Add a Remote Graph node between an image and a preview."""
    made = remote(editor)
    image = editor.add("EmptyImage", 80, 150, width=32, height=32, color=next(COLOURS))
    editor.link(image, 0, made, "image")
    editor.link(made, 1, editor.add("PreviewImage", 780, 150), "images")
    return made


def sockets(editor: Editor, which: str) -> Any:
    """Return label and type of the inputs and outputs of the node that the JavaScript ``which`` returns."""
    return tuple(
        editor.page.evaluate(
            "(which) => { const node = eval(which); return ['inputs', 'outputs'].map((side) =>"
            " node[side].filter((slot) => !slot.widget).map((slot) => [slot.label ?? slot.name, slot.type])); }",
            which,
        )
    )


def into_subgraph(editor: Editor, made: int) -> int:
    """Convert the node to a subgraph; return the id of the subgraph node."""
    return int(editor.page.evaluate("(id) => Number(app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)])).node.id)", made))


def ends_well(editor: Editor) -> None:
    """Press Run, and assert that nothing fails."""
    editor.run()
    editor.wait_for_end()
    assert editor.heard("execution_error") == []
    assert editor.heard("execution_success")


NODES = f"app.graph._nodes.filter((n) => n.comfyClass === '{NODE}')"
INNER = f"app.graph._nodes.find((n) => n.isSubgraphNode?.()).subgraph._nodes.find((n) => n.comfyClass === '{NODE}')"


@BOTH
def test_in_a_subgraph_the_node_keeps_its_sockets_runs_and_is_saved(editor: Editor, vue: bool) -> None:
    editor.draw_with(vue=vue)
    into_subgraph(editor, linked(editor))
    assert sockets(editor, INNER) == SOCKETS
    ends_well(editor)
    workflow = editor.save()
    editor.load(workflow)
    assert sockets(editor, INNER) == SOCKETS
    editor.page.evaluate(
        "(color) => { app.graph._nodes.find((n) => n.type === 'EmptyImage').widgets.find((w) => w.name === 'color').value = color; }",
        next(COLOURS),
    )
    ends_well(editor)
    prompt = editor.prompt()
    (inner,) = [entry for entry in prompt.values() if entry["class_type"] == NODE]
    assert json.loads(inner["inputs"]["contract"])["outputs"][0]["name"] == "soft"
    assert isinstance(inner["inputs"]["ports.p0"], list)


@BOTH
def test_in_a_subgraph_a_changed_contract_is_applied(editor: Editor, pair: Any, vue: bool) -> None:
    editor.draw_with(vue=vue)
    into_subgraph(editor, linked(editor))
    workflow = editor.save()
    pair.studio.deploy("soften", soften("picture"))
    editor.load(workflow)
    editor.wait_until(lambda: editor.page.evaluate(f"() => {INNER}.widgets.some((w) => w.type === 'button')"))
    editor.page.evaluate(f"() => {INNER}.widgets.find((w) => w.type === 'button').callback()")
    assert sockets(editor, INNER)[0] == [["picture", "IMAGE"]]
    ends_well(editor)


@BOTH
def test_in_a_subgraph_progress_and_previews_show_on_the_subgraph(editor: Editor, pair: Any, vue: bool) -> None:
    pair.studio.deploy("paint inside", paint(8))
    editor.draw_with(vue=vue)
    made = remote(editor, "paint inside", 1)
    text = editor.add("PrimitiveString", 80, 150, value=f"a wood, seen from {'above' if vue else 'below'}")
    editor.link(text, 0, made, "prompt")
    editor.link(made, 0, editor.add("PreviewImage", 780, 150), "images")
    around = into_subgraph(editor, made)
    editor.run()
    editor.wait_for_end()
    assert editor.heard("execution_error") == []
    inside = editor.page.evaluate(f"() => {INNER}.id")
    steps = {
        told["nodes"][f"{around}:{inside}"]["value"] for told in editor.heard("progress_state") if f"{around}:{inside}" in told["nodes"]
    }
    assert len(steps) >= 3
    assert {told["node"] for told in editor.heard("b_preview_with_metadata")} == {f"{around}:{inside}"}


@BOTH
def test_a_copied_node_is_independent(editor: Editor, vue: bool) -> None:
    editor.draw_with(vue=vue)
    made = linked(editor)
    editor.page.evaluate(
        "(id) => { app.canvas.deselectAll(); app.canvas.select(app.graph.getNodeById(id)); app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard(); }",
        made,
    )
    assert editor.page.evaluate(f"() => {NODES}.length") == 2
    other = editor.page.evaluate(f"(id) => Number({NODES}.find((n) => Number(n.id) !== id).id)", made)
    assert sockets(editor, f"app.graph.getNodeById({other})") == SOCKETS
    assert editor.inputs(made) == [["image", "IMAGE", True]]
    assert editor.inputs(other) == [["image", "IMAGE", False]]
    image = editor.add("EmptyImage", 80, 450, width=16, height=16, color=next(COLOURS))
    editor.link(image, 0, other, "image")
    editor.link(other, 0, editor.add("PreviewImage", 780, 450), "images")
    ends_well(editor)
    prompt = editor.prompt()
    assert prompt[str(made)]["inputs"]["ports.p0"] != prompt[str(other)]["inputs"]["ports.p0"]


@BOTH
def test_a_cloned_node_has_the_same_sockets(editor: Editor, vue: bool) -> None:
    editor.draw_with(vue=vue)
    made = linked(editor)
    editor.page.evaluate(
        "(id) => { app.canvas.constructor.active_canvas = app.canvas; app.canvas.constructor.cloneNodes([app.graph.getNodeById(id)]); }",
        made,
    )
    other = editor.page.evaluate(f"(id) => Number({NODES}.find((n) => Number(n.id) !== id).id)", made)
    assert sockets(editor, f"app.graph.getNodeById({other})") == SOCKETS
    assert editor.inputs(other) == [["image", "IMAGE", False]]
    assert editor.outputs(made)[1] == ["inverted", "IMAGE", 1]
    assert editor.value(other, "graph") == "soften"


@BOTH
def test_undo_and_redo_of_choosing_a_graph(editor: Editor, pair: Any, vue: bool) -> None:
    pair.studio.deploy("plain", {"1": graph_input("image", "IMAGE"), "3": graph_output("image", ("1", 0), "IMAGE")})
    editor.draw_with(vue=vue)
    linked(editor)
    editor.load(editor.save())
    track = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    outputs = f"() => ({NODES}[0]?.outputs ?? []).map((o) => [o.label ?? o.name, o.links?.length ?? 0])"
    made = editor.chosen(NODE)
    editor.set(made, "graph", "plain")
    editor.wait_until(lambda: editor.page.evaluate(outputs) == [["image", 0]])
    editor.page.evaluate(f"() => {track}.captureCanvasState()")
    # choosing may be one step, and the sockets that follow when the endpoint has answered another
    seen = []
    for step in ("undo", "undo", "redo", "redo"):
        editor.page.evaluate(f"() => {track}.{step}()")
        editor.page.wait_for_timeout(700)
        seen.append((editor.value(made, "graph"), editor.page.evaluate(outputs)))
    assert seen[1] == ("soften", [["soft", 0], ["inverted", 1]])
    assert seen[3] == ("plain", [["image", 0]])


@BOTH
def test_cancel_stops_the_graph_at_the_endpoint(editor: Editor, pair: Any, vue: bool) -> None:
    pair.studio.deploy("paint long", paint(2000))
    editor.draw_with(vue=vue)
    made = remote(editor, "paint long", 1)
    text = editor.add("PrimitiveString", 80, 150, value=f"a sea without {'end' if vue else 'shore'}")
    editor.link(text, 0, made, "prompt")
    editor.link(made, 0, editor.add("PreviewImage", 780, 150), "images")
    editor.run()
    editor.wait_until(lambda: editor.heard("progress_state") and pair.studio.jobs(graph_id="paint long", status="IN_PROGRESS"), 60)
    editor.wait_until(lambda: pair.studio.queue()[0], 60)
    editor.page.evaluate("() => app.extensionManager.command.execute('Comfy.Interrupt')")
    until(lambda: pair.studio.jobs(graph_id="paint long")[0]["status"] == "CANCELLED")
    until(lambda: pair.studio.queue() == ([], []))
    until(lambda: pair.here.get("/queue")["queue_running"] == [])
    assert editor.heard("execution_error") == []


@BOTH
def test_a_local_fallback_is_shown_on_the_node(editor: Editor, pair: Any, vue: bool) -> None:
    editor.draw_with(vue=vue)
    made = linked(editor)
    editor.set(made, "fallback", "local")
    ends_well(editor)
    file = pair.here.base / "user" / "yggdrasill" / "endpoints.yaml"
    before = file.read_text(encoding="utf-8")
    file.write_text(before.replace(pair.there.url, "http://127.0.0.1:9"), encoding="utf-8")
    try:
        ends_well(editor)
        editor.wait_until(lambda: "⚠ ran locally" in editor.badges(made))
        assert any("cannot be reached, so graph" in text for text in editor.messages())
    finally:
        file.write_text(before, encoding="utf-8")
    ends_well(editor)
    assert "⚠ ran locally" not in editor.badges(made)


def test_the_seed_can_be_a_widget_of_the_subgraph(editor: Editor, pair: Any) -> None:
    config = {
        "graph_id": "tokens",
        "nodes": [{"node_id": "n", "block_type": "tokenizer/identity"}],
        "exposed_inputs": [{"node_id": "n", "port_name": "text", "name": "text"}],
        "exposed_outputs": [{"node_id": "n", "port_name": "token_ids", "name": "ids"}],
    }
    loop_thread().run(pair.studio.client.deploy("tokens", {"kind": "graph", "config": config, "state": None}))
    made = remote(editor, "tokens", 1)
    editor.link(editor.add("PrimitiveString", 80, 150, value="bees"), 0, made, "text")
    editor.link(made, 0, editor.add("PreviewAny", 780, 150), "source")
    around = into_subgraph(editor, made)
    editor.page.evaluate(
        "([id, inner]) => { const host = app.graph.getNodeById(id), node = eval(inner);"
        " const slot = node.getSlotFromWidget(node.widgets.find((w) => w.name === 'seed'));"
        " host.subgraph.addInput('seed', 'INT').connect(slot, node); }",
        [around, INNER],
    )
    editor.set(around, "seed", 41)
    ends_well(editor)
    workflow = editor.save()
    editor.load(workflow)
    (inner,) = [entry for entry in editor.prompt().values() if entry["class_type"] == NODE]
    assert inner["inputs"]["seed"] == 41
    assert isinstance(inner["inputs"]["ports.p0"], list)
