"""ComfyUI's official templates, converted to prompts by its editor."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samples.comfy import Installation, Server
from samples.editor import Editor

__all__ = ["MARKER", "Template", "captured", "opened", "template_files"]

#: The name of the files in the folders of the server that validates.
MARKER = "a file of this folder"
_PACKAGE = "comfyui_workflow_templates_json/templates"

#: The prompt and the workflow as Run posts them, and what the editor says lies in each group of each graph. One tab serves all.
_OPEN = """async (drawn) => {
  const tab = app.extensionManager.workflow.activeWorkflow;
  await app.loadGraphData(drawn, true, false, tab, { skipAssetScans: true, silentAssetErrors: true, deferWarnings: true });
  const { output, workflow } = await app.graphToPrompt();
  const groups = [];
  for (const graph of [app.rootGraph, ...app.rootGraph.subgraphs.values()]) {
    for (const node of graph.nodes) node.updateArea(app.canvas.ctx);
    graph.groups.forEach((group) => group.recomputeInsideNodes());
    for (const group of graph.groups)
      groups.push({ graph: String(graph.id), title: group.title, box: [...group._bounding], nodes: [...group._nodes].map((n) => String(n.id)) });
  }
  return JSON.parse(JSON.stringify({ prompt: output, workflow, groups }));
}"""


@dataclass(frozen=True)
class Template:
    """One template; ``groups`` are those of the editor, with ``graph``, ``title``, ``box`` and ``nodes``."""

    name: str
    prompt: dict[str, dict[str, Any]]
    workflow: dict[str, Any]
    groups: list[dict[str, Any]]


def template_files(installation: Installation) -> list[Path]:
    """Return the workflows of the template package of ComfyUI's Python."""
    libraries = installation.python.parent.parent
    folders = [*libraries.glob(f"lib/python*/site-packages/{_PACKAGE}"), *libraries.glob(f"Lib/site-packages/{_PACKAGE}")]
    assert folders, f"no {_PACKAGE} below {libraries}: install comfyui-workflow-templates, as ComfyUI's requirements.txt says"
    return sorted(path for path in folders[0].glob("*.json") if "nodes" in _read(path))


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def captured(server: Server, installation: Installation, page: Any, kept: Path) -> list[Template]:
    """Yield every template as a prompt made by the editor, or from the folder ``kept`` if the same versions made it before."""
    system = server.get("/system_stats")["system"]
    versions = [value for name, value in sorted(system.items()) if name.endswith(("_version", "_versions"))]
    digest = hashlib.sha256(json.dumps([versions, _OPEN]).encode()).hexdigest()[:16]
    path = kept / f"templates-{digest}.json.gz"
    if not path.exists():
        editor = Editor(page, server.url).open().empty()
        made = [asdict(opened(editor, file.stem, _read(file))) for file in template_files(installation)]
        path.write_bytes(gzip.compress(json.dumps(made).encode(), mtime=0))
    return [Template(**entry) for entry in json.loads(gzip.decompress(path.read_bytes()))]


def opened(editor: Editor, name: str, workflow: dict[str, Any]) -> Template:
    """Return a workflow as the editor opens it."""
    return Template(name, **editor.page.evaluate(_OPEN, workflow))
