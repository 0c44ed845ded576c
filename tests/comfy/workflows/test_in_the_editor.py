"""The shipped workflows in a real browser: found among the templates, opened, run on three servers; and a world of fifty passes."""

from __future__ import annotations

import json
import os
from io import BytesIO
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from PIL import Image

from samples.comfy import Server
from samples.comfy_graphs import data_folder, until
from samples.editor import Editor
from samples.shipped_workflows import NAMES, api_form, editor_form, in_small, write_api_form
from yggdrasill.values import dumps
from yggdrasill.world import World

pytestmark = [pytest.mark.conformance, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore:BuildMismatch")]

#: Rather a workflow's own values than these, which a test has no time for.
_SMALL = """(values) => {
  for (const [id, inputs] of Object.entries(values)) {
    const node = app.graph.getNodeById(Number(id));
    for (const widget of node?.widgets ?? []) if (widget.name in inputs && !Array.isArray(inputs[widget.name])) widget.value = inputs[widget.name];
  }
}"""


@pytest.fixture(scope="module")
def opened(browser: Any, theatre: Any) -> Editor:
    """The editor of the first server."""
    return Editor(browser.new_page(), theatre.here.url).open()


@pytest.fixture
def editor(opened: Editor) -> Editor:
    """The editor with an empty canvas."""
    opened.page.keyboard.press("Escape")
    return opened.empty()


def pixels(server: Server, outputs: dict[str, Any]) -> dict[str, list[bytes]]:
    """Return the pictures that the nodes of a run saved or showed."""
    found: dict[str, list[bytes]] = {}
    for key, told in outputs.items():
        for shown in told.get("images", ()):
            with urlopen(f"{server.url}/view?{urlencode(shown)}", timeout=30) as answer:
                found.setdefault(key, []).append(Image.open(BytesIO(answer.read())).convert("RGB").tobytes())
    return found


def run(editor: Editor, seconds: float = 250) -> dict[str, Any]:
    """Press Run; return the outputs that the nodes showed."""
    editor.run()
    editor.wait_for_end(seconds)
    assert editor.heard("execution_error") == []
    (started,) = editor.heard("execution_start")
    found: dict[str, Any] = json.loads(urlopen(f"{editor.url}/history/{started['prompt_id']}", timeout=30).read())
    outputs: dict[str, Any] = found[started["prompt_id"]]["outputs"]
    return outputs


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opened_in_the_editor_equals_its_prompt_and_runs_on_three_servers(theatre: Any, editor: Editor, name: str) -> None:
    small = {key: each for key, each in in_small(api_form(name)).items() if not key.startswith("note-")}
    theatre.place(name, 1)
    alone = pixels(theatre.here, theatre.here.run(small, timeout=250)["outputs"])
    theatre.place(name, 3)
    editor.load(editor_form(name))
    editor.page.wait_for_timeout(1000)
    if os.environ.get("KEEP_WORKFLOWS"):
        write_api_form(name, editor.prompt())
    assert editor.prompt() == api_form(name)
    editor.page.evaluate(_SMALL, {key: each["inputs"] for key, each in small.items()})
    assert editor.prompt() == small
    assert pixels(theatre.here, run(editor)) == alone
    if os.environ.get("KEEP_PICTURES"):
        theatre.place(name, 1)
        editor.load(editor_form(name))
        run(editor)
        editor.whole_picture(name)


def test_the_shipped_workflows_are_among_the_templates(theatre: Any, editor: Editor) -> None:
    assert sorted(theatre.here.get("/workflow_templates")["yggdrasill"]) == NAMES
    editor.page.evaluate("() => { void app.extensionManager.command.execute('Comfy.BrowseTemplates'); }")
    dialog = editor.page.get_by_role("dialog")
    dialog.get_by_text("yggdrasill", exact=True).first.click()
    for name in NAMES:
        dialog.get_by_text(name, exact=True).first.wait_for()
    editor.page.wait_for_timeout(1500)
    editor.picture("templates")
    dialog.get_by_text("terrain-world", exact=True).first.click()
    editor.wait_until(lambda: editor.page.evaluate("() => app.graph._nodes.some((n) => n.type === 'YggdrasillRunWorld')"))
    assert editor.prompt() == api_form("terrain-world")


def test_fifty_resumed_passes_on_three_servers_equal_those_of_one_process(theatre: Any, editor: Editor) -> None:
    name = "terrain-world-three-servers"
    places = theatre.place(name, 3)
    editor.load(editor_form(name))
    settings = next(each["inputs"] for each in api_form(name).values() if each["class_type"] == "YggdrasillWorld")
    action = next(each["inputs"]["action"] for each in api_form(name).values() if each["class_type"] == "YggdrasillRunWorld")
    last = data_folder(theatre.here) / "worlds" / "overnight" / "run"
    editor.run()
    editor.wait_until(lambda: _passes(editor) >= 60, 200)  # of 250 stages
    editor.page.evaluate("() => app.extensionManager.command.execute('Comfy.Interrupt')")
    until(lambda: theatre.here.get("/queue")["queue_running"] == [], 60)
    assert editor.heard("execution_success") == []
    assert json.loads((last / "run.json").read_text(encoding="utf-8"))["done"] is False
    run(editor, 400)
    assert all(caller.jobs(limit=1) for caller in places)
    world = World.from_template("canon_2.0", world_id="overnight", seed=settings["source.seed"], size=settings["source.size"])
    whole = world.run(num_steps=50, action=action)
    saved = World.load(data_folder(theatre.here) / "worlds" / "after-the-night").last_state
    assert saved is not None
    assert saved.passes == 50
    assert dumps(saved.to_dict()) == dumps(whole.to_dict())


def _passes(editor: Editor) -> float:
    """Return the number of stages that the run has completed, from the node's progress."""
    told = [each for state in editor.heard("progress_state") for each in state["nodes"].values() if each.get("max") == 250]
    return max((float(each["value"]) for each in told), default=0)
