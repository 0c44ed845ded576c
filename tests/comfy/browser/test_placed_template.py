"""A ComfyUI template with a part on another server: runs, progress, cancellation and failures, as docs/placement.md describes."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from samples.comfy import Servers
from samples.comfy_graphs import Caller, data_folder, know, placed, token_of
from samples.editor import Editor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEMPLATE = "sd3.5_simple_example"
SEEDS = itertools.count(1)
"""Another one for each run, or ComfyUI would have the picture already."""
SETTINGS = """() => {
  const set = (id, values) => app.graph.getNodeById(id).widgets.forEach((w) => { if (w.name in values) w.value = values[w.name]; });
  set(4, { ckpt_name: "tiny.ckpt" });
  set(53, { width: 64, height: 64 });
  set(3, { steps: 8, control_after_generate: "fixed" });
}"""
TIDY = """() => {
  const paint = app.graph._nodes.find((node) => node.isSubgraphNode?.());
  paint.title = "Paint";
  const place = (node, pos, size) => { node.pos = pos; if (size) node.setSize(size); };
  place(app.graph.getNodeById(53), [40, 60]);
  place(app.graph.getNodeById(54), [40, 260], [315, 120]);
  place(paint, [420, 60], [300, 360]);
  place(app.graph.getNodeById(9), [780, 60], [300, 360]);
  app.canvas.deselectAll();
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [40, 90];
  return Number(paint.id);
}"""
SET_INSIDE = """([seed, steps]) => {
  const paint = app.rootGraph._nodes.find((node) => node.isSubgraphNode?.());
  paint.widgets.find((w) => w.name === "seed").value = seed;
  paint.subgraph.getNodeById(3).widgets.find((w) => w.name === "steps").value = steps;
}"""
OPEN_SUBGRAPH = "() => { const s = app.graph._nodes.find((n) => n.isSubgraphNode?.()); app.canvas.openSubgraph(s.subgraph, s); }"
DROP = """async (url) => {
  const data = new DataTransfer();
  data.items.add(new File([await (await fetch(url)).blob()], "dragged.png", { type: "image/png" }));
  const at = { bubbles: true, cancelable: true, dataTransfer: data, clientX: 600, clientY: 500 };
  for (const kind of ["dragenter", "dragover", "drop"]) app.canvas.canvas.dispatchEvent(new DragEvent(kind, at));
}"""


@pytest.fixture
def registry(pair: Any) -> Iterator[Path]:
    """The registry of the server whose editor is open, which also contains itself as ``desk``; both servers have the model."""
    models = pair.there.base / "models" / "checkpoints"
    own = pair.here.base / "models" / "checkpoints" / "tiny.ckpt"
    own.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(models / "tiny.ckpt", own)
    file = data_folder(pair.here) / "endpoints.yaml"
    before = {each: each.read_text(encoding="utf-8") for each in (file, file.with_name("secrets.yaml"))}
    know(pair.here, {"studio": pair.there, "desk": pair.here})
    yield file
    own.unlink()
    for each, text in before.items():
        each.write_text(text, encoding="utf-8")


def workflow_of(editor: Editor) -> str:
    """Return the open workflow as it is saved in a file."""
    found: str = editor.page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).workflow)")
    return found


def open_template(editor: Editor) -> None:
    """Find one of ComfyUI's templates and open it, after the page has read the current models and registry."""
    editor.page.evaluate("() => app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    editor.page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    editor.page.evaluate("() => { void app.extensionManager.command.execute('Comfy.BrowseTemplates'); }")
    editor.page.get_by_placeholder("Search ...").fill("SD3.5 Simple")
    editor.page.get_by_test_id(f"template-workflow-{TEMPLATE}").click()
    editor.wait_until(lambda: editor.page.evaluate("() => app.graph._nodes.some((node) => node.type === 'CheckpointLoaderSimple')"))
    editor.page.get_by_text("is missing").first.wait_for()


def into_subgraph(editor: Editor) -> int:
    """Convert all nodes but the empty latent and the save node to a subgraph Paint; return the id of its node."""
    editor.page.evaluate(SETTINGS)
    editor.page.evaluate("() => app.canvas.selectItems([4, 16, 40, 3, 8].map((id) => app.graph.getNodeById(id)))")
    editor.page.evaluate("() => { void app.extensionManager.command.execute('Comfy.Graph.ConvertToSubgraph'); }")
    editor.wait_until(lambda: editor.page.evaluate("() => app.graph._nodes.length") == 4)
    made = int(editor.page.evaluate(TIDY))
    editor.page.mouse.move(700, 500)
    editor.page.mouse.move(720, 520)
    editor.page.wait_for_timeout(700)
    return made


def run_on(editor: Editor, endpoint: str, picture: str | None = None) -> None:
    """Choose an endpoint in the menu of the subgraph node."""
    x, y = editor.page.evaluate(
        "() => { const box = app.canvas.canvas.getBoundingClientRect(); const at = app.canvas.ds.convertOffsetToCanvas([520, 45]);"
        " return [box.left + at[0], box.top + at[1]]; }"
    )
    editor.page.mouse.click(x, y, button="right")
    editor.page.locator(".litemenu-entry", has_text="Run on").click()
    editor.page.wait_for_timeout(300)
    if picture is not None:
        editor.picture(picture, "transfer")
    editor.page.locator(".litemenu-entry", has_text=endpoint).click()


def start(editor: Editor, steps: int = 8) -> None:
    """Press Run with another seed."""
    editor.page.evaluate(SET_INSIDE, [next(SEEDS), steps])
    editor.run()


def finish(editor: Editor) -> None:
    refusal = editor.page.locator(".ygg-refusal")
    editor.wait_until(lambda: editor.heard("execution_success") or editor.heard("execution_error") or refusal.count(), 200)
    assert refusal.all_inner_texts() == []
    assert editor.heard("execution_error") == []
    editor.page.wait_for_timeout(500)


def ran_at(side: Any) -> int:
    """Return how many runs of the part a server has finished."""
    return sum(job["status"] == "COMPLETED" for job in side.jobs(graph_id="Paint"))


def saved(editor: Editor, pair: Any) -> Path:
    """Return the picture that was saved last."""
    folder: Path = pair.here.base / "output"
    return max(folder.glob("*.png"), key=lambda file: file.stat().st_mtime_ns)


def test_a_part_of_a_template_runs_remotely_and_the_picture_contains_the_workflow(editor: Editor, pair: Any, placements: Path) -> None:
    open_template(editor)
    editor.picture("template", "transfer")
    paint = into_subgraph(editor)
    editor.page.evaluate(SET_INSIDE, [next(SEEDS), 8])
    before = workflow_of(editor)
    run_on(editor, "studio", "run-on")
    editor.wait_until(lambda: placed(placements) == {"Paint": "studio"})
    editor.wait_until(lambda: "on studio" in editor.badges(paint))
    posted, jobs = editor.prompt(), ran_at(pair.studio)
    editor.run()
    sampler = f"{paint}:3"
    editor.wait_until(lambda: len(editor.heard("b_preview_with_metadata")) >= 3, 100)
    editor.picture("running", "transfer")
    finish(editor)
    assert {each["node"] for each in editor.heard("b_preview_with_metadata")} == {sampler}
    steps = {told["nodes"][sampler]["value"] for told in editor.heard("progress_state") if told["nodes"].get(sampler, {}).get("max") == 8}
    assert len(steps) >= 3
    assert ran_at(pair.studio) == jobs + 1
    assert workflow_of(editor) == before
    file = saved(editor, pair)
    with Image.open(file) as picture:
        info = {name: str(text) for name, text in picture.info.items()}
    kept = json.loads(info["prompt"])
    assert {node: (each["class_type"], each["inputs"]) for node, each in kept.items()} == {
        node: (each["class_type"], each["inputs"]) for node, each in posted.items()
    }
    assert json.dumps(json.loads(info["workflow"])) == json.dumps(json.loads(before))
    for hidden in (pair.there.url, pair.here.url, token_of(pair.there), token_of(pair.here), "studio", "YggdrasillPlacedPart"):
        assert hidden not in "".join(info.values())
    editor.empty()
    editor.page.evaluate(DROP, f"{pair.here.url}/view?filename={file.name}&type=output")
    editor.wait_until(lambda: editor.page.evaluate("() => app.graph._nodes.length") == 4)
    editor.page.wait_for_timeout(700)
    editor.picture("dragged", "transfer")
    editor.wait_until(lambda: "on studio" in editor.badges(paint))
    assert editor.prompt() == posted
    again = workflow_of(editor)
    editor.load(json.loads(before))
    assert again == workflow_of(editor)


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_nodes_inside_the_subgraph_show_progress(editor: Editor, pair: Any, placements: Path, vue: bool) -> None:
    open_template(editor)
    into_subgraph(editor)
    run_on(editor, "studio")
    editor.draw_with(vue=vue)
    editor.page.evaluate(OPEN_SUBGRAPH)
    editor.page.wait_for_timeout(700)
    start(editor)
    editor.wait_until(lambda: len(editor.heard("b_preview_with_metadata")) >= 3, 100)
    editor.picture("inside-vue" if vue else "inside", "transfer")
    finish(editor)
    editor.page.evaluate("() => { void app.extensionManager.command.execute('Comfy.Graph.ExitSubgraph'); }")


def test_a_vue_node_of_a_part_shows_its_badge_and_progress(editor: Editor, pair: Any, placements: Path) -> None:
    open_template(editor)
    paint = into_subgraph(editor)
    run_on(editor, "studio")
    editor.draw_with(vue=True)
    element = editor.page.locator(f"[data-node-id='{paint}']")
    element.get_by_text("on studio", exact=True).wait_for()
    start(editor)
    editor.wait_until(lambda: len(editor.heard("b_preview_with_metadata")) >= 3, 100)
    editor.picture("running-vue", "transfer")
    finish(editor)


def test_cancel_stops_the_endpoint_and_the_next_run_succeeds(editor: Editor, pair: Any, placements: Path) -> None:
    open_template(editor)
    into_subgraph(editor)
    run_on(editor, "studio")
    start(editor, steps=2000)
    editor.wait_until(lambda: len(editor.heard("b_preview_with_metadata")) >= 2, 100)
    editor.page.evaluate("() => { void app.extensionManager.command.execute('Comfy.Interrupt'); }")
    editor.wait_until(lambda: pair.studio.jobs(graph_id="Paint")[0]["status"] == "CANCELLED")
    editor.wait_until(lambda: pair.studio.queue() == ([], []))
    editor.wait_until(lambda: pair.here.get("/queue")["queue_running"] == [])
    assert editor.heard("execution_error") == []
    before = ran_at(pair.studio)
    start(editor)
    finish(editor)
    assert ran_at(pair.studio) == before + 1


def place(registry: Path, where: str) -> None:
    """Write the placement of Paint into the registry."""
    text = registry.read_text(encoding="utf-8")
    head, _, _ = text.partition("graphs:")
    registry.write_text(f"{head}graphs:\n  Paint: {where}\ndefault: local\n", encoding="utf-8")


def test_a_stopped_endpoint_is_an_error_or_another_replica_or_this_server_runs_the_part(
    editor: Editor, pair: Any, registry: Path, servers: Servers
) -> None:
    open_template(editor)
    into_subgraph(editor)
    seed = next(SEEDS)
    editor.page.evaluate(SET_INSIDE, [seed, 8])
    before = workflow_of(editor)
    place(registry, "studio")
    start(editor)
    finish(editor)
    pair.there.stop()
    try:
        start(editor)
        # refused at once, or failed in the run if the server does not know yet that the endpoint is down
        message = editor.page.locator(".ygg-refusal")
        message.wait_for(timeout=60_000)
        assert "endpoint 'studio'" in message.inner_text()
        assert "nothing answers" in message.inner_text()
        editor.page.wait_for_timeout(500)
        editor.picture("down", "transfer")
        editor.page.wait_for_timeout(12_000)
        editor.page.keyboard.press("Escape")
        message.get_by_role("button", name="Close").click()
        for where, here in (("{replicas: [studio, desk]}", 1), ("{replicas: [studio], fallback: local}", 0)):
            place(registry, where)
            pictures, jobs = saved(editor, pair), ran_at(Caller(pair.here))
            start(editor)
            finish(editor)
            assert saved(editor, pair) != pictures
            assert ran_at(Caller(pair.here)) == jobs + here
    finally:
        servers.start_again(pair.there)
    editor.page.wait_for_timeout(3000)
    place(registry, "studio")
    jobs = ran_at(pair.studio)
    start(editor)
    finish(editor)
    assert ran_at(pair.studio) == jobs + 1
    editor.page.evaluate(SET_INSIDE, [seed, 8])
    assert workflow_of(editor) == before
