"""Prompts with placed parts that cannot run: the page shows the reason first, on the part's own nodes too, and what can be done."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from samples.comfy_graphs import token_of
from samples.editor import Editor
from yggdrasill.foundation.config import read_document

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore:BuildMismatch:RuntimeWarning")]

COLOURS = itertools.count(0x552211)
LINK = "([from, output, to, input]) => app.graph.getNodeById(from).connect(output, app.graph.getNodeById(to), input)"
GROUP = """([title, box]) => {
  const group = new LiteGraph.LGraphGroup(title);
  Object.assign(group, { pos: box.slice(0, 2), size: box.slice(2) });
  app.graph.add(group);
  app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
}"""
SUBGRAPH = """([nodes, title]) => {
  const { node } = app.graph.convertToSubgraph(new Set(nodes.map((id) => app.graph.getNodeById(id))));
  Object.assign(node, { title, pos: [420, 60] });
  app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
  return Number(node.id);
}"""
REFUSED = "⚠ cannot run where placed"


def draw(editor: Editor, *, subgraph: bool = False) -> tuple[list[int], list[int]]:
    """Draw the part Paint between an image and a preview; return the ids of its nodes and of the others."""
    image = editor.add("EmptyImage", 60, 100, width=32, height=32, color=next(COLOURS))
    inverted, blurred = editor.add("ImageInvert", 400, 100), editor.add("ImageBlur", 400, 260)
    shown = editor.add("PreviewImage", 760, 100)
    for link in ([image, 0, inverted, 0], [inverted, 0, blurred, 0], [blurred, 0, shown, 0]):
        editor.page.evaluate(LINK, link)
    if subgraph:
        return [editor.page.evaluate(SUBGRAPH, [[inverted, blurred], "Paint"])], [image, shown]
    editor.page.evaluate(GROUP, ["Paint", [380, 40, 330, 420]])
    return [inverted, blurred], [image, shown]


def refuse(editor: Editor, registry: Path, where: str = "closed") -> Any:
    """Place Paint on an endpoint and press Run; return the message of the refusal."""
    text = registry.read_text(encoding="utf-8")
    registry.write_text(text.replace("graphs: {}", f"graphs: {{Paint: {where}}}"), encoding="utf-8")
    editor.run()
    message = editor.page.locator(".ygg-refusal")
    message.wait_for(timeout=60_000)
    return message


def red_frames(editor: Editor) -> list[int]:
    found: list[int] = editor.page.evaluate("() => app.graph._nodes.filter((node) => node.has_errors).map((node) => Number(node.id))")
    return found


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
@pytest.mark.parametrize("subgraph", [False, True], ids=["group", "subgraph"])
def test_the_reason_is_shown_first_and_on_the_parts_own_nodes(editor: Editor, registry: Path, vue: bool, subgraph: bool) -> None:
    editor.draw_with(vue=vue)
    inside, outside = draw(editor, subgraph=subgraph)
    message = refuse(editor, registry)
    sentence = "Part 'Paint' cannot run: endpoint 'closed' is not up: nothing answers at its url."
    assert sentence in message.inner_text()
    overlay = editor.page.get_by_test_id("error-overlay")
    overlay.wait_for()
    assert sentence in overlay.inner_text()
    assert "unrecognized" not in editor.page.inner_text("body")
    assert "does not recognize" not in editor.page.inner_text("body")
    assert red_frames(editor) == inside
    assert all(REFUSED in editor.badges(node) for node in inside)
    assert not any(REFUSED in editor.badges(node) for node in outside)
    if vue:
        editor.page.get_by_text(REFUSED).first.wait_for()
    editor.page.get_by_role("button", name="View details").click()
    assert "unrecognized" not in editor.page.inner_text("body")


def test_the_part_runs_here_for_once(editor: Editor, registry: Path) -> None:
    inside, _ = draw(editor)
    message = refuse(editor, registry)
    message.get_by_role("button", name="Run here").click()
    editor.wait_for_end()
    assert editor.heard("execution_error") == []
    assert message.count() == 0
    assert red_frames(editor) == []
    assert not any(REFUSED in editor.badges(node) for node in inside)
    assert read_document(registry)["graphs"] == {"Paint": "closed"}
    refuse(editor, registry)


def test_preflight_and_the_list_of_parts_are_one_click_away(editor: Editor, registry: Path, placements: Path) -> None:
    draw(editor)
    refuse(editor, registry).get_by_role("button", name="Preflight").click()
    editor.page.get_by_role("dialog", name="Preflight").wait_for()
    editor.page.keyboard.press("Escape")
    refuse(editor, registry).get_by_role("button", name="Place elsewhere").click()
    editor.page.get_by_label("Endpoint for Paint").select_option("studio")
    editor.run()
    editor.wait_for_end()
    assert editor.heard("execution_error") == []
    editor.page.locator(".yggdrasill-tab-button").click()


def test_a_missing_model_offers_to_fetch_it(editor: Editor, registry: Path) -> None:
    loader = editor.add("CheckpointLoaderSimple", 400, 100)
    encode = editor.add("CLIPTextEncode", 400, 260)
    editor.page.evaluate(LINK, [loader, 1, encode, 0])
    editor.page.evaluate("(id) => { app.graph.getNodeById(id).widgets[0].value = 'nowhere.safetensors'; }", loader)
    editor.page.evaluate(LINK, [encode, 0, editor.add("PreviewAny", 780, 100), 0])
    editor.page.evaluate(GROUP, ["Paint", [380, 40, 330, 420]])
    message = refuse(editor, registry, "studio")
    assert "nowhere.safetensors" in message.inner_text()
    message.get_by_role("button", name="Preflight: fetch what is missing").click()
    editor.page.get_by_role("dialog", name="Preflight").wait_for()
    editor.page.keyboard.press("Escape")


def test_the_errors_of_comfyui_stay_as_they_are(editor: Editor) -> None:
    shown = editor.add("PreviewImage", 760, 100)
    editor.run()
    overlay = editor.page.get_by_test_id("error-overlay")
    overlay.wait_for()
    assert editor.page.locator(".ygg-refusal").count() == 0
    assert red_frames(editor) == [shown]


# -- adding an endpoint -------------------------------------------------------------------------------------------


def test_the_form_keeps_what_was_entered_and_says_what_helps(editor: Editor, tab: Any, pair: Any, registry: Path) -> None:
    tab.get_by_role("button", name="Add an endpoint").click()
    line, problem = tab.get_by_label("Pairing line or address"), tab.locator(".ygg-form [role=alert]")
    address = pair.there.url.removeprefix("http://")

    def fails(entered: str, expected: str) -> None:
        line.fill(entered)
        tab.get_by_role("button", name="Add", exact=True).click()
        editor.wait_until(lambda: expected in problem.inner_text(), 40)
        assert line.input_value() == entered

    fails("127.0.0.1:9", "Nothing listens at 127.0.0.1:9. Start ComfyUI there, with the option --listen")
    fails(address, f"{address} requires a token. Copy the pairing line")
    fails(f"{address} a-token-that-is-not-right", f"{address} refuses the token.")
    fails(f"https://{address} {token_of(pair.there)}", f"{address} serves http. Use the address http://{address}.")
    tab.get_by_label("Name").fill("studio")
    fails(f"{address} {token_of(pair.there)}", f"There is already an endpoint 'studio', at {address}.")
    tab.get_by_role("button", name="Replace").click()
    editor.wait_until(lambda: any("Endpoint “studio” was added" in text for text in editor.messages()))
    assert read_document(registry)["endpoints"]["studio"]["url"] == pair.there.url


def test_the_command_opens_the_same_form(editor: Editor, pair: Any, registry: Path) -> None:
    editor.page.evaluate("() => { void app.extensionManager.command.execute('Yggdrasill.AddEndpoint'); }")
    form = editor.page.get_by_role("dialog", name="Add an endpoint")
    form.get_by_label("Pairing line or address").fill(f"yggdrasill-pairing: {pair.there.url} {token_of(pair.there)}")
    form.get_by_label("Name").fill("forge")
    form.get_by_role("button", name="Add", exact=True).click()
    editor.wait_until(lambda: any("Endpoint “forge” was added" in text for text in editor.messages()))
    assert form.count() == 0
    assert "forge" in read_document(registry)["endpoints"]
