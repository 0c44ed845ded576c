"""Preflight in the editor, fetching a missing model to the endpoint, and the costs of a run, with two servers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from samples.comfy_graphs import placed
from samples.editor import Editor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LINK = "([from, output, to, input]) => app.graph.getNodeById(from).connect(output, app.graph.getNodeById(to), input)"
SUBGRAPH = """([nodes, title]) => {
  const { node } = app.graph.convertToSubgraph(new Set(nodes.map((id) => app.graph.getNodeById(id))));
  Object.assign(node, { title, pos: [420, 60] });
  app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
}"""


def draw(editor: Editor, model: str, source: str = "") -> None:
    """Draw a subgraph Paint that samples, and a preview of its output."""
    kinds = ("CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "KSampler", "VAEDecode")
    loader, text, latent, sampler, decoder = nodes = [editor.add(kind, 420 + 20 * index, 60) for index, kind in enumerate(kinds)]
    shown = editor.add("PreviewImage", 820, 60)
    editor.page.evaluate(
        "([id, name, url]) => { const node = app.graph.getNodeById(id); node.widgets[0].value = name;"
        " if (url) node.properties.models = [{ name, url, directory: 'checkpoints' }]; }",
        [loader, model, source],
    )
    for name, value in (("width", 64), ("height", 64)):
        editor.set(latent, name, value)
    editor.set(sampler, "steps", 4)
    for link in (
        [loader, 0, sampler, 0], [loader, 1, text, 0], [text, 0, sampler, 1], [text, 0, sampler, 2], [latent, 0, sampler, 3],
        [sampler, 0, decoder, 0], [loader, 2, decoder, 1], [decoder, 0, shown, 0],
    ):  # fmt: skip
        editor.page.evaluate(LINK, link)
    editor.page.evaluate(SUBGRAPH, [nodes, "Paint"])


def place(editor: Editor, tab: Any, placements: Path, where: str) -> None:
    tab.get_by_label("Endpoint for Paint").select_option(where)
    editor.wait_until(lambda: placed(placements) == {"Paint": where})


def preflight(editor: Editor, tab: Any) -> Any:
    """Press Preflight; return the dialog with its result."""
    tab.get_by_role("button", name="Preflight").click()
    dialog = editor.page.get_by_role("dialog", name="Preflight")
    editor.wait_until(lambda: "Checking" not in dialog.inner_text())
    return dialog


def test_preflight_without_placements(editor: Editor, tab: Any) -> None:
    draw(editor, "tiny.ckpt")
    assert "Everything runs on this server" in preflight(editor, tab).inner_text()


def test_preflight_run_figures_and_timeline(editor: Editor, tab: Any, placements: Path) -> None:
    draw(editor, "tiny.ckpt")
    place(editor, tab, placements, "studio")
    dialog = preflight(editor, tab)
    said = dialog.inner_text()
    assert "Ready to run." in said
    assert "5 nodes · 0 values sent · 1 received" in said
    assert "has everything it needs" in said
    editor.page.keyboard.press("Escape")
    assert dialog.count() == 0
    editor.run()
    editor.wait_for_end()
    assert editor.heard("execution_error") == []
    run = tab.locator("section[aria-label='Last run']")
    editor.wait_until(lambda: "compute" in run.inner_text() and "transferred" in run.inner_text())
    assert "studio" in run.inner_text()
    run.get_by_role("button", name="Timeline").click()
    picture = editor.page.get_by_role("dialog", name="Timeline").locator("svg")
    picture.wait_for()
    assert "Paint" in picture.text_content()


def test_two_independent_parts_run_in_parallel(editor: Editor, tab: Any, placements: Path) -> None:
    image = editor.add("EmptyImage", 350, 20, width=512, height=512, color=0x4F7CAC)
    for title, y in (("Soften", 10), ("Sharpen", 300)):
        blur, invert = editor.add("ImageBlur", 560, y, sigma=4.0 if title == "Soften" else 2.0), editor.add("ImageInvert", 560, y)
        shown = editor.add("PreviewImage", 960, y)
        for link in ([image, 0, blur, 0], [blur, 0, invert, 0], [invert, 0, shown, 0]):
            editor.page.evaluate(LINK, link)
        editor.page.evaluate(SUBGRAPH.replace("[420, 60]", f"[690, {y}]"), [[blur, invert], title])
    for title in ("Soften", "Sharpen"):
        tab.get_by_label(f"Endpoint for {title}").select_option("studio")
        editor.wait_until(lambda title=title: placed(placements).get(title) == "studio")  # type: ignore[misc]
    dialog = preflight(editor, tab)
    dialog.get_by_text("Details").first.click()
    assert "2 nodes · 1 value sent · 1 received" in dialog.inner_text()
    assert "IMAGE of Empty Image" in dialog.inner_text()
    assert "IMAGE of Invert Image Colors" in dialog.inner_text()
    editor.page.wait_for_timeout(300)
    editor.picture("preflight")
    editor.page.keyboard.press("Escape")
    editor.run()
    editor.wait_for_end()
    assert editor.heard("execution_error") == []
    run = tab.locator("section[aria-label='Last run']")
    editor.wait_until(lambda: "compute" in run.inner_text())
    editor.page.wait_for_timeout(4500)
    editor.picture("sidebar")
    run.get_by_role("button", name="Timeline").click()
    picture = editor.page.get_by_role("dialog", name="Timeline").locator("svg")
    picture.wait_for()
    assert "Soften" in picture.text_content()
    assert "Sharpen" in picture.text_content()
    editor.picture("timeline")


def test_a_missing_model_is_fetched_to_the_endpoint_from_a_source_that_its_owner_allows(
    editor: Editor, tab: Any, placements: Path, pair: Any, model_server: tuple[Path, str]
) -> None:
    folder, url = model_server
    shutil.copy(pair.there.base / "models" / "checkpoints" / "tiny.ckpt", folder / "other.ckpt")
    draw(editor, "other.ckpt", f"{url}/other.ckpt")
    place(editor, tab, placements, "studio")
    dialog = preflight(editor, tab)
    assert "Not ready to run: Paint" in dialog.inner_text()
    assert "model file other.ckpt" in dialog.inner_text()
    source = dialog.get_by_label("Source")
    assert source.input_value() == f"{url}/other.ckpt"
    assert dialog.get_by_label("Folder").input_value() == "checkpoints"
    editor.page.wait_for_timeout(300)
    editor.picture("missing")
    source.fill("https://example.com/other.ckpt")
    dialog.get_by_role("button", name="Fetch to studio").click()
    editor.wait_until(lambda: "'https://example.com/other.ckpt' is not allowed on this endpoint" in dialog.inner_text())
    source.fill(f"{url}/other.ckpt")
    dialog.get_by_role("button", name="Fetch to studio").click()
    editor.wait_until(lambda: "Ready to run." in dialog.inner_text(), 60)
    fetched = pair.there.base / "models" / "checkpoints" / "other.ckpt"
    assert fetched.read_bytes() == (folder / "other.ckpt").read_bytes()
    fetched.unlink()


def test_preflight_shows_why_a_workflow_cannot_be_partitioned(editor: Editor, tab: Any, registry: Path, placements: Path) -> None:
    first, last = editor.add("EmptyImage", 420, 100), editor.add("PreviewImage", 760, 100)
    editor.page.evaluate(LINK, [first, 0, last, 0])
    for title, box in (("One", [400, 40, 320, 300]), ("Two", [410, 50, 320, 300])):
        editor.page.evaluate(
            "([title, box]) => { const g = new LiteGraph.LGraphGroup(title); g.pos = box.slice(0, 2); g.size = box.slice(2);"
            " app.graph.add(g); app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState(); }",
            [title, box],
        )
    # keys of all workflows leave the workflow runnable
    text = registry.read_text(encoding="utf-8")
    registry.write_text(text.replace("graphs: {}", "graphs: {One: closed, Two: studio}"), encoding="utf-8")
    dialog = preflight(editor, tab)
    assert "share nodes" in dialog.inner_text()
    assert dialog.get_by_role("alert").count() == 0
    editor.page.keyboard.press("Escape")
    registry.write_text(text, encoding="utf-8")
    # placements of the workflow itself
    for title, where in (("One", "closed"), ("Two", "studio")):
        tab.get_by_label(f"Endpoint for {title}").select_option(where)
        editor.wait_until(lambda title=title, where=where: placed(placements).get(title) == where)  # type: ignore[misc]
    assert "neither lies inside the other" in preflight(editor, tab).get_by_role("alert").inner_text()
    editor.page.keyboard.press("Escape")
    placements.unlink()
    draw(editor, "tiny.ckpt")
    registry.write_text(text.replace("graphs: {}", "graphs: {Paint: closed, Other: studio}"), encoding="utf-8")
    said = preflight(editor, tab).inner_text()
    assert "Not ready to run: Paint" in said
    assert "nothing answers" in said
