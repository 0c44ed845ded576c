"""Serving the open workflow from the editor, and the cost of the extension for the page."""

from __future__ import annotations

from typing import Any

import pytest

from samples.comfy import ROOT, Server, Servers
from samples.comfy_graphs import Caller
from samples.editor import Editor
from yggdrasill.remote.loop_thread import loop_thread

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def invert(editor: Editor, name: str = "negative") -> int:
    """Draw a workflow with one input and one output; return the id of its Graph Output."""
    before = editor.add("YggdrasillGraphInput", 80, 150, name="picture")
    inverted = editor.add("ImageInvert", 420, 150)
    after = editor.add("YggdrasillGraphOutput", 720, 150, name=name)
    editor.link(inverted, 0, after, "value")
    editor.page.evaluate("([a, b]) => app.graph.getNodeById(a).connect(0, app.graph.getNodeById(b), 0)", [before, inverted])
    return after


def serve(editor: Editor, name: str) -> None:
    """Run the command, and enter the name."""
    editor.page.evaluate("() => { void app.extensionManager.command.execute('Yggdrasill.ServeWorkflow'); }")
    asked = editor.page.get_by_role("dialog").get_by_role("textbox")
    asked.fill(name)
    asked.press("Enter")


def contract(server: Server, name: str) -> dict[str, Any]:
    """Return the contract of the graph that the server serves under a name."""
    return loop_thread().run(Caller(server).client.contract(name))


def test_the_open_workflow_is_served_under_the_entered_name(editor: Editor, pair: Any) -> None:
    invert(editor)
    serve(editor, "invert it")
    editor.wait_until(lambda: any("Served as “invert it”" in text and pair.here.url in text for text in editor.messages()))
    found = contract(pair.here, "invert it")
    assert [(port["name"], port["comfy_type"]) for port in found["inputs"]] == [("picture", "IMAGE")]
    assert [(port["name"], port["comfy_type"]) for port in found["outputs"]] == [("negative", "IMAGE")]
    assert editor.save()["extra"]["yggdrasill"] == {"served_as": "invert it"}


def test_ports_are_served_in_the_order_of_their_nodes_in_the_editor(editor: Editor, pair: Any) -> None:
    places = {"third": (80, 500), "first": (80, 120), "second, on the left": (80, 300), "second, on the right": (260, 300)}
    for name, (x, y) in places.items():
        before = editor.add("YggdrasillGraphInput", x, y, name=name)
        after = editor.add("YggdrasillGraphOutput", x + 500, y, name=name)
        editor.page.evaluate("([a, b]) => app.graph.getNodeById(a).connect(0, app.graph.getNodeById(b), 0)", [before, after])
    serve(editor, "in order")
    editor.wait_until(lambda: any("Served as “in order”" in text for text in editor.messages()))
    found = contract(pair.here, "in order")
    wanted = ["first", "second, on the left", "second, on the right", "third"]
    assert [port["name"] for port in found["inputs"]] == wanted
    assert [port["name"] for port in found["outputs"]] == wanted


def test_a_served_workflow_is_replaced_only_after_confirmation(editor: Editor, pair: Any) -> None:
    after = invert(editor)
    serve(editor, "taken")
    editor.wait_until(lambda: any("Served" in text for text in editor.messages()))
    first = contract(pair.here, "taken")
    editor.set(after, "name", "other")
    serve(editor, "taken")
    dialog = editor.page.get_by_text("Another graph is served as “taken”")
    dialog.wait_for()
    assert contract(pair.here, "taken") == first
    editor.page.get_by_role("dialog").get_by_role("button", name="Overwrite").click()
    editor.wait_until(lambda: contract(pair.here, "taken")["outputs"][0]["name"] == "other")


def test_a_workflow_without_outputs_is_not_served(editor: Editor) -> None:
    editor.add("EmptyImage", 80, 150)
    editor.page.evaluate("() => { void app.extensionManager.command.execute('Yggdrasill.ServeWorkflow'); }")
    editor.wait_until(lambda: any("Add a Graph Output" in text for text in editor.messages()))
    assert editor.page.get_by_role("dialog").count() == 0


def test_a_port_type_entered_by_the_user_is_kept(editor: Editor) -> None:
    after = editor.add("YggdrasillGraphOutput", 720, 150, type="MASK")
    editor.link(editor.add("EmptyImage", 80, 150), 0, after, "value")
    assert editor.value(after, "type") == "MASK"


def test_the_extension_costs_three_requests_and_little_script(browser: Any, pair: Any, servers: Servers) -> None:
    bare = servers.start(pack=False)
    asked = {}
    for name, server in (("bare", bare), ("with", pair.here)):
        page = browser.new_page()
        editor = Editor(page, server.url).open()
        page.wait_for_timeout(2000)
        paths = (url.removeprefix(server.url).partition("?")[0] for url in editor.requests)
        asked[name] = {path for path in paths if path.startswith("/")}
        page.close()
    bare.stop()
    ours = asked["with"] - asked["bare"]
    assert ours == {f"/extensions/yggdrasill/{file.name}" for file in (ROOT / "web" / "start").glob("*.js")}
    assert len(ours) <= 3
    assert sum(file.stat().st_size for file in (ROOT / "web").rglob("*.js")) < 120_000
