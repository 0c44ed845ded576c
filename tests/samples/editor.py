"""ComfyUI's editor in a real browser: adding and linking nodes, opening lists, watching runs, taking screenshots."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samples.comfy import ROOT

__all__ = ["FLAGS", "PICTURES", "Editor", "find_browser", "started_browser"]

PICTURES = ROOT / "docs" / "pictures"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SEEN = {"x": 50, "y": 36, "width": 1150, "height": 560}
#: The place on the page where a whole workflow is shown, clear of what lies along the edges; its width, and the room around it.
_LEFT, _TOP, _WIDTH, _ROOM = 60, 60, 1496, 14
_SHOW_WHOLE = """([left, top, width]) => {
  const boxes = [...app.graph._nodes, ...app.graph._groups].map((each) => each.boundingRect ?? each._bounding);
  const low = [0, 1].map((axis) => Math.min(...boxes.map((box) => box[axis])));
  const high = [0, 1].map((axis) => Math.max(...boxes.map((box) => box[axis] + box[axis + 2])));
  const { ds } = app.canvas;
  ds.scale = width / (high[0] - low[0]);
  ds.offset = [left / ds.scale - low[0], top / ds.scale - low[1]];
  app.canvas.setDirty(true, true);
  return (high[1] - low[1]) * ds.scale;
}"""
_READY = "() => window.app?.extensionManager && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100"
_WATCH = """() => {
  if (window.heard) return;
  window.heard = [];
  const add = (kind) => app.api.addEventListener(kind, ({ detail }) => heard.push([kind, Date.now(), facts(kind, detail)]));
  const facts = (kind, detail) => kind === "b_preview_with_metadata" ? { node: detail.displayNodeId, bytes: detail.blob.size }
    : kind === "executing" ? { node: detail } : detail;
  ["progress_state", "b_preview_with_metadata", "executing", "execution_error", "execution_success", "execution_start"].forEach(add);
}"""


def find_browser() -> str | None:
    """Return the Chromium at CHROMIUM or an installed one, or None if it or Playwright is missing."""
    if importlib.util.find_spec("playwright") is None:
        return None
    return os.environ.get("CHROMIUM") or next((found for name in _NAMES if (found := shutil.which(name))), None)


@contextlib.contextmanager
def started_browser(binary: str, profile: Path) -> Iterator[Any]:
    """Start a browser context with a new profile."""
    playwright = importlib.import_module("playwright.sync_api").sync_playwright
    with playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(profile), executable_path=binary, headless=True, args=list(FLAGS), viewport={"width": 1200, "height": 720}
        )
        try:
            yield context
        finally:
            context.close()


@dataclass(eq=False)
class Editor:
    """A page of the editor. Nodes are identified by the editor's ids."""

    page: Any = field(repr=False)
    url: str
    requests: list[str] = field(default_factory=list)
    ready_after: float = 0.0

    def open(self) -> Editor:
        """Load the page and wait until nodes can be added; ``ready_after`` is the time that took."""
        self.page.on("request", lambda request: self.requests.append(request.url))
        started = time.monotonic()
        self.page.goto(self.url)
        self.page.wait_for_function(_READY, timeout=90_000)
        self.ready_after = time.monotonic() - started
        return self

    def empty(self, *, vue: bool = False) -> Editor:
        """Open an empty canvas with one of the two node renderers, and start recording the messages of runs."""
        self.page.wait_for_function("() => app.graph && app.extensionManager.workflow?.activeWorkflow")
        self.page.evaluate(_WATCH)
        self.page.evaluate("() => { heard.length = 0; app.extensionManager.toast.removeAll(); }")
        self.page.evaluate("() => app.extensionManager.setting.set('Comfy.Minimap.Visible', false)")
        self.draw_with(vue=vue)
        self.load({"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": [], "config": {}, "extra": {}})
        self.page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 120]; }")
        return self

    def draw_with(self, *, vue: bool) -> None:
        """Draw nodes on the canvas, or as Vue components."""
        self.page.evaluate("(vue) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)
        self.page.wait_for_timeout(300)

    # -- nodes --------------------------------------------------------------------------------------------------

    def add(self, kind: str, x: int, y: int, **values: Any) -> int:
        """Add a node with these widget values, and return its id."""
        made = self.page.evaluate(
            "([kind, x, y]) => { const node = LiteGraph.createNode(kind); node.pos = [x, y]; app.graph.add(node); return Number(node.id); }",
            [kind, x, y],
        )
        for name, value in values.items():
            self.set(made, name, value)
        return int(made)

    def set(self, node: int, name: str, value: Any) -> None:
        """Set a widget's value, as a click does."""
        self.page.evaluate(
            "([id, name, value]) => { const node = app.graph.getNodeById(id), widget = node.widgets.find((w) => w.name === name);"
            " widget.value = value; widget.callback?.(value, app.canvas, node); }",
            [node, name, value],
        )

    def choices(self, node: int, name: str) -> list[str]:
        """Return the options of a list."""
        found: list[str] = self.page.evaluate(
            "([id, name]) => { const { values } = app.graph.getNodeById(id).widgets.find((w) => w.name === name).options;"
            " return typeof values === 'function' ? values() : values; }",
            [node, name],
        )
        return found

    def value(self, node: int, name: str) -> Any:
        """Return a widget's value."""
        return self.page.evaluate("([id, name]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name)?.value", [node, name])

    def link(self, source: int, output: int, target: int, label: str) -> None:
        """Link an output to the input with the label ``label``."""
        self.page.evaluate(
            "([from, output, to, label]) => { const node = app.graph.getNodeById(to);"
            " const slot = node.inputs.findIndex((i) => !i.widget && (i.label ?? i.name) === label);"
            " if (slot < 0 || !app.graph.getNodeById(from).connect(output, node, slot)) throw new Error('no link to ' + label); }",
            [source, output, target, label],
        )

    def inputs(self, node: int) -> list[list[Any]]:
        """Return label, type and link state of each input that is not a widget."""
        found: list[list[Any]] = self.page.evaluate(
            "(id) => app.graph.getNodeById(id).inputs.filter((i) => !i.widget).map((i) => [i.label ?? i.name, i.type, i.link != null])",
            node,
        )
        return found

    def outputs(self, node: int) -> list[list[Any]]:
        """Return label, type and number of links of each output."""
        found: list[list[Any]] = self.page.evaluate(
            "(id) => app.graph.getNodeById(id).outputs.map((o) => [o.label ?? o.name, o.type, o.links?.length ?? 0])", node
        )
        return found

    def badges(self, node: int) -> list[str]:
        """Return the texts of a node's badges."""
        found: list[str] = self.page.evaluate(
            "(id) => app.graph.getNodeById(id).badges.map((b) => (typeof b === 'function' ? b() : b).text).filter(Boolean)", node
        )
        return found

    def chosen(self, kind: str) -> int:
        """Return the id of the only node of a class."""
        found = self.page.evaluate("(kind) => app.graph._nodes.filter((n) => n.comfyClass === kind).map((n) => Number(n.id))", kind)
        assert len(found) == 1, found
        return int(found[0])

    # -- the workflow -------------------------------------------------------------------------------------------

    def prompt(self) -> dict[str, Any]:
        """Return the open workflow in ComfyUI's API format."""
        found: dict[str, Any] = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        return found

    def save(self) -> dict[str, Any]:
        """Return the open workflow as saved to a file."""
        found: dict[str, Any] = self.page.evaluate("async () => JSON.parse(JSON.stringify(app.graph.serialize()))")
        return found

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow from its file."""
        self.page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)

    def run(self) -> None:
        """Press Run."""
        self.page.evaluate("() => { heard.length = 0; }")
        self.page.get_by_test_id("queue-button").click()

    def heard(self, kind: str) -> list[Any]:
        """Return the data of all messages of one kind since the last run started."""
        found: list[Any] = self.page.evaluate("(kind) => heard.filter((each) => each[0] === kind).map((each) => each[2])", kind)
        return found

    def wait_for_end(self, seconds: float = 100) -> None:
        """Wait until the run has ended, with any result."""
        self.wait_until(lambda: self.heard("execution_success") or self.heard("execution_error"), seconds)

    # -- looking ------------------------------------------------------------------------------------------------

    def wait_until(self, what: Callable[[], Any], seconds: float = 20) -> Any:
        """Return the first true result while the page continues; raise TimeoutError."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = what()
            if found:
                return found
            self.page.wait_for_timeout(60)
        raise TimeoutError(f"waited {seconds} s in vain")

    def messages(self) -> list[str]:
        """Return the texts of the messages on screen."""
        found: list[str] = self.page.locator(".p-toast-message").all_inner_texts()
        return found

    def picture(self, name: str, series: str = "editor") -> None:
        """Save a screenshot as ``docs/pictures/SERIES-NAME.png`` if KEEP_PICTURES is set, with 256 colours to keep it small."""
        if not os.environ.get("KEEP_PICTURES"):
            return
        self._keep(f"{series}-{name}", _SEEN)

    def whole_picture(self, name: str) -> None:
        """Save a screenshot of the whole workflow alone as ``docs/pictures/workflow-NAME.png``, as `picture`."""
        if not os.environ.get("KEEP_PICTURES"):
            return
        before = self.page.viewport_size
        self.page.set_viewport_size({"width": _WIDTH + 2 * _LEFT, "height": 1200})
        self.page.evaluate("() => { app.extensionManager.toast.removeAll(); app.canvas.deselectAll(); }")
        self.page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
        self.page.wait_for_timeout(1000)
        height = self.page.evaluate(_SHOW_WHOLE, [_LEFT + _ROOM, _TOP + _ROOM, _WIDTH - 2 * _ROOM])
        self.page.wait_for_timeout(1000)
        self._keep(f"workflow-{name}", {"x": _LEFT, "y": _TOP, "width": _WIDTH, "height": int(height) + 2 * _ROOM})
        self.page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
        self.page.set_viewport_size(before)

    def _keep(self, name: str, clip: dict[str, Any]) -> None:
        from io import BytesIO

        from PIL import Image

        seen = Image.open(BytesIO(self.page.screenshot(clip=clip))).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        seen.save(PICTURES / f"{name}.png", optimize=True)
