"""The steps of the README, "From an empty canvas to a two-server pipeline", by mouse and keyboard as described."""

from __future__ import annotations

import re
from typing import Any

import pytest

from samples.comfy import ROOT
from samples.comfy_graphs import Caller
from samples.editor import Editor

pytestmark = [pytest.mark.conformance, pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore:BuildMismatch")]

HEADING = "### From an empty canvas to a two-server pipeline"
WORDS = "Three cold islands with high mountains"
_POINT = """([id, side, name]) => {
  const node = app.graph.getNodeById(id), at = node[side].findIndex((s) => (s.label ?? s.name) === name || s.name === name);
  if (at < 0) throw new Error(`no ${name} among ` + node[side].map((s) => s.label ?? s.name));
  const [x, y] = node.getConnectionPos(side === "inputs", at), { left, top } = app.canvas.canvas.getBoundingClientRect();
  return [(x + app.canvas.ds.offset[0]) * app.canvas.ds.scale + left, (y + app.canvas.ds.offset[1]) * app.canvas.ds.scale + top];
}"""


#: As in a new installation; this one passes for an old one, since it has a file of settings without a version.
_AS_NEW = "() => app.extensionManager.setting.set('Comfy.LinkRelease.Action', 'search box')"


class Person:
    """A user of the editor; each method is one action."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.page = editor.page
        self.actions = 0

    def add(self, name: str, x: int, y: int) -> int:
        """Double-click the canvas, type a node's name, press Enter, click."""
        self.actions += 1
        return self._made(lambda: self._search(name, x, y, lambda: self.page.mouse.dblclick(x, y)))

    def pull(self, node: int, side: str, slot: str, x: int, y: int, name: str) -> int:
        """Drag a link from a socket onto the empty canvas and choose the node that it links to."""
        self.actions += 1
        return self._made(lambda: self._search(name, x, y, lambda: self._drag(node, side, slot, x, y)))

    def choose(self, node: int, widget: str, value: str) -> None:
        """Choose from a list."""
        self.actions += 1
        assert value in self.editor.choices(node, widget)
        self.editor.set(node, widget, value)

    def type(self, node: int, widget: str, text: str) -> None:
        """Enter a text into a box."""
        self.actions += 1
        self.editor.set(node, widget, text)

    def run(self) -> None:
        """Press Run."""
        self.actions += 1
        self.editor.run()

    def _drag(self, node: int, side: str, slot: str, x: int, y: int) -> None:
        self.page.mouse.move(*self.page.evaluate(_POINT, [node, side, slot]))
        self.page.mouse.down()
        self.page.mouse.move(x - 20, y - 20, steps=8)
        self.page.mouse.move(x, y, steps=4)
        self.page.mouse.up()

    def _search(self, name: str, x: int, y: int, begin: Any) -> None:
        """Choose a node in the search box; it follows the pointer until a click places it."""
        begin()
        box = self.page.get_by_role("combobox").or_(self.page.locator("input[placeholder*='earch']")).last
        box.wait_for()
        box.fill(name)
        self.page.wait_for_timeout(900)
        self.page.keyboard.press("Enter")
        self.page.wait_for_timeout(500)
        self.page.mouse.click(x, y)

    def _made(self, act: Any) -> int:
        before = set(self._ids())
        act()
        self.editor.wait_until(lambda: set(self._ids()) - before)
        (made,) = set(self._ids()) - before
        self.page.wait_for_timeout(500)
        return int(made)

    def _ids(self) -> list[int]:
        found: list[int] = self.page.evaluate("() => app.graph._nodes.map((n) => Number(n.id))")
        return found


def steps_of_the_readme() -> list[str]:
    """Return the numbered lines under the heading."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    return re.findall(r"^(\d+)\. ", text, flags=re.MULTILINE)


def test_nine_actions_from_an_empty_canvas_to_a_pipeline_on_two_servers(theatre: Any, browser: Any) -> None:
    theatre.place("serve-refine", 3)
    editor = Editor(browser.new_page(), theatre.here.url).open().empty()
    editor.page.evaluate("() => { app.canvas.ds.scale = 0.6; app.canvas.ds.offset = [0, 0]; }")
    editor.page.evaluate(_AS_NEW)
    person = Person(editor)

    person.actions += 1  # endpoints.yaml
    registry = theatre.here.base / "user" / "yggdrasill" / "endpoints.yaml"
    known = registry.read_text(encoding="utf-8")
    places = "graphs:\n  architect: forge\n  creator: loom\n"
    registry.write_text(re.sub(r"^graphs:.*\n", "", known, flags=re.MULTILINE) + places, encoding="utf-8")

    architect = person.add("Load Graph", 210, 150)
    pipeline = person.pull(architect, "outputs", "graph", 540, 150, "Pipeline")
    creator = person.pull(pipeline, "inputs", "g1", 210, 420, "Load Graph")
    person.choose(creator, "source", "template: creator")
    run = person.pull(pipeline, "outputs", "pipeline", 900, 150, "Run Graph")
    editor.wait_until(lambda: "happening" in [label for label, _, _ in editor.inputs(run)])
    words = person.pull(run, "inputs", "happening", 540, 420, "Text (Multiline)")
    person.type(words, "value", WORDS)
    before = {name: len(Caller(server).jobs(limit=1000)) for name, server in (("forge", theatre.forge), ("loom", theatre.loom))}
    person.run()
    editor.wait_for_end()
    assert editor.heard("execution_error") == []
    assert person.actions == len(steps_of_the_readme()) == 9
    for name, server in (("forge", theatre.forge), ("loom", theatre.loom)):
        assert len(Caller(server).jobs(limit=1000)) > before[name]
    prompt = editor.prompt()
    assert prompt[str(pipeline)]["inputs"]["graphs.g0"] == [str(architect), 0]
    assert prompt[str(run)]["inputs"]["ports.p0"] == [str(words), 0]
    editor.page.wait_for_timeout(1500)
    editor.picture("first-pipeline")
