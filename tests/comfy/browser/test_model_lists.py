"""Choosing a model that only the endpoint has: the lists of placed nodes, the run, and the workflow when it is opened again."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samples.editor import Editor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

GROUP = """([title, box]) => {
  const group = new LiteGraph.LGraphGroup(title);
  group.pos = box.slice(0, 2);
  group.size = box.slice(2);
  app.graph.add(group);
  app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
}"""
LINK = "([from, output, to, input]) => app.graph.getNodeById(from).connect(output, app.graph.getNodeById(to), input)"
WIDGET = """([id, name]) => {
  app.canvas.draw(true, true);
  const node = app.graph.getNodeById(id), widget = node.widgets.find((each) => each.name === name);
  const box = app.canvas.canvas.getBoundingClientRect();
  const at = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + (widget.y ?? widget.last_y) + 10]);
  return [box.left + at[0], box.top + at[1]];
}"""
KEY = "ckpt_name"


@pytest.fixture
def own_file(pair: Any, editor: Editor) -> Iterator[Path]:
    """A checkpoint that only the server has whose editor is open."""
    file: Path = pair.here.base / "models" / "checkpoints" / "desk_only.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * 100)
    reload_definitions(editor)
    yield file
    file.unlink()
    reload_definitions(editor)


def reload_definitions(editor: Editor) -> None:
    editor.page.evaluate("() => app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")


def draw(editor: Editor) -> int:
    """Draw a group Paint that samples, and a preview of its output; return the id of the checkpoint loader."""
    kinds = ("CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "KSampler", "VAEDecode")
    places = ((40, 60), (40, 220), (460, 420), (460, 60), (790, 60))
    loader, text, latent, sampler, decoder = (editor.add(kind, *place) for kind, place in zip(kinds, places, strict=True))
    shown = editor.add("PreviewImage", 1100, 60)
    for name, value in (("width", 64), ("height", 64)):
        editor.set(latent, name, value)
    editor.set(sampler, "steps", 2)
    for link in (
        [loader, 0, sampler, 0], [loader, 1, text, 0], [text, 0, sampler, 1], [text, 0, sampler, 2], [latent, 0, sampler, 3],
        [sampler, 0, decoder, 0], [loader, 2, decoder, 1], [decoder, 0, shown, 0],
    ):  # fmt: skip
        editor.page.evaluate(LINK, link)
    editor.page.evaluate(GROUP, ["Paint", [20, -20, 1000, 620]])
    return loader


def place(editor: Editor, tab: Any, where: str) -> None:
    chosen = tab.get_by_label("Endpoint for Paint")
    chosen.select_option(where)
    editor.wait_until(lambda: chosen.input_value() == where)


def choose(editor: Editor, node: int, name: str, value: str, vue: bool) -> None:
    """Choose from a list with the mouse."""
    if vue:
        editor.page.locator("[data-testid=widget-select-default-trigger]").and_(editor.page.get_by_label(name)).click()
        editor.page.get_by_role("option", name=value).click()
    else:
        editor.page.mouse.click(*editor.page.evaluate(WIDGET, [node, name]))
        editor.page.locator(".litecontextmenu .litemenu-entry", has_text=value).click()
    editor.wait_until(lambda: editor.value(node, name) == value)


def missing(editor: Editor) -> list[str]:
    """Return what the editor reports as missing."""
    editor.page.wait_for_timeout(1200)
    page = editor.page
    texts = page.get_by_text("missing", exact=False)
    return [text for text in texts.all_inner_texts() if "model" in text or "ckpt" in text or "is missing" in text]


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_checkpoint_that_only_the_endpoint_has_is_chosen_run_and_opened_again(
    editor: Editor, tab: Any, registry: Path, pair: Any, own_file: Path, vue: bool
) -> None:
    editor.draw_with(vue=vue)
    loader = draw(editor)
    assert editor.choices(loader, KEY) == ["desk_only.safetensors"]
    editor.page.evaluate("() => { app.canvas.ds.offset = [380, 140]; app.canvas.setDirty(true, true); }")
    place(editor, tab, "studio")
    editor.wait_until(lambda: editor.choices(loader, KEY) == ["tiny.ckpt"])
    choose(editor, loader, KEY, "tiny.ckpt", vue)
    before = len(pair.here.printed())
    editor.run()
    editor.wait_for_end()
    assert editor.heard("execution_error") == []
    assert len(editor.heard("execution_success")) == 1
    log = pair.here.printed()[before:]
    assert "Value not in list" not in log
    assert "Failed to validate" not in log
    # opened again, also by a page that has not read the registry
    workflow = editor.save()
    editor.empty(vue=vue)
    editor.load(workflow)
    editor.wait_until(lambda: editor.choices(loader, KEY) == ["tiny.ckpt"])
    assert missing(editor) == []
    # definitions that are read again leave the endpoint's files in the list
    reload_definitions(editor)
    editor.page.wait_for_timeout(500)
    assert editor.choices(loader, KEY) == ["tiny.ckpt"]
    # taken back
    editor.wait_until(lambda: tab.get_by_label("Endpoint for Paint").count() == 1)
    place(editor, tab, "local")
    editor.wait_until(lambda: editor.choices(loader, KEY) == ["desk_only.safetensors"])


def test_a_new_page_reports_no_file_of_the_endpoint_as_missing(browser: Any, editor: Editor, tab: Any, registry: Path, pair: Any) -> None:
    loader = draw(editor)
    place(editor, tab, "studio")
    editor.wait_until(lambda: editor.choices(loader, KEY) == ["tiny.ckpt"])
    editor.set(loader, KEY, "tiny.ckpt")
    workflow = editor.save()
    page = browser.new_page()
    try:
        other = Editor(page, pair.here.url).open()
        other.page.wait_for_function("() => app.graph && app.extensionManager.workflow?.activeWorkflow")
        other.load(workflow)
        assert other.choices(loader, KEY) == ["tiny.ckpt"]
        assert missing(other) == []
        # another workflow, in which nothing is placed; with the same content it would be a copy, which has the placements of its original
        workflow["id"] = str(uuid.uuid4())
        workflow["groups"][0]["title"] = "Elsewhere"
        other.load(workflow)
        other.wait_until(lambda: missing(other) != [])
        assert other.choices(loader, KEY) == []
    finally:
        page.close()
        editor.page.bring_to_front()


def test_a_user_decides_in_preflight_about_a_file_with_other_bytes(
    editor: Editor, tab: Any, registry: Path, pair: Any, own_file: Path
) -> None:
    other = own_file.with_name("tiny.ckpt")
    other.write_bytes(b"an unrelated file")
    reload_definitions(editor)
    try:
        loader = draw(editor)
        editor.set(loader, KEY, "tiny.ckpt")
        place(editor, tab, "studio")
        tab.get_by_role("button", name="Preflight").click()
        dialog = editor.page.get_by_role("dialog", name="Preflight")
        dialog.get_by_text("model file tiny.ckpt in checkpoints differs from this server's").wait_for()
        assert "Not ready to run: Paint" in dialog.inner_text()
        dialog.get_by_role("button", name="Use the endpoint's files").click()
        dialog.get_by_text("Ready to run.", exact=True).wait_for()
        editor.page.keyboard.press("Escape")
        assert editor.save()["extra"]["yggdrasill"] == {"models": "theirs"}
        editor.run()
        editor.wait_for_end()
        assert editor.heard("execution_error") == []
        assert len(editor.heard("execution_success")) == 1
    finally:
        other.unlink()
        reload_definitions(editor)


def test_the_list_of_a_subgraph_s_widget_is_that_of_the_endpoint(editor: Editor, tab: Any, registry: Path, own_file: Path) -> None:
    loader = editor.add("CheckpointLoaderSimple", 420, 60)
    subgraph = int(
        editor.page.evaluate(
            """(id) => {
              const { node } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]));
              Object.assign(node, { title: "Paint", pos: [420, 60] });
              const inner = node.subgraph._nodes[0], slot = inner.inputs.findIndex((input) => input.widget?.name === "ckpt_name");
              node.subgraph.addInput("ckpt_name", "COMBO").connect(inner.inputs[slot], inner);
              app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
              return Number(node.id);
            }""",
            loader,
        )
    )
    place(editor, tab, "studio")
    editor.wait_until(
        lambda: (
            editor.page.evaluate("(id) => app.graph.getNodeById(id).subgraph._nodes[0].widgets[0].options.values", subgraph)
            == ["tiny.ckpt"]
        )
    )
    assert editor.choices(subgraph, KEY) == ["tiny.ckpt"]
    place(editor, tab, "local")
    editor.wait_until(lambda: editor.choices(subgraph, KEY) == ["desk_only.safetensors"])
