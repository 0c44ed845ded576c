"""Real servers that lack something that the extension uses: ordinary prompts run, and what is off is reported and refused."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from samples.comfy import ROOT, Server, Servers, make_base_directory
from samples.comfy_graphs import data_folder, node
from yggdrasill.server_ext.comfy.editor.route_guard import UI_HEADER

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")

_PACK = """
import importlib.util, sys
{change}
spec = importlib.util.spec_from_file_location("yggdrasill_for_tests", {init!r}, submodule_search_locations=[{root!r}])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
comfy_entrypoint = module.comfy_entrypoint
"""
_ENDPOINT = "import execution; del execution.PromptQueue.interrupt_if_running"
_GRAPH_NODES = "import server; del server.PromptServer.send_progress_text"
_PLACEMENT = """
import asyncio, execution
async def run_prompt(self, *arguments, original=execution.PromptExecutor.execute_async):
    await original(self, *arguments)
def execute(self, *arguments):
    asyncio.run(self.run_prompt(*arguments))
execute.__module__ = "execution"
execution.PromptExecutor.run_prompt, execution.PromptExecutor.execute = run_prompt, execute
del execution.PromptExecutor.execute_async
"""
_HANDLER = "import server; del server.PromptServer.add_on_prompt_handler"
_NESTED = "import comfy.memory_management; del comfy.memory_management.RAM_CACHE_HEADROOM"
_EDITOR = "import comfy_api.latest._io as forms; del forms.build_nested_inputs"
_EVERYTHING = f"{_ENDPOINT}\n{_GRAPH_NODES}\n{_PLACEMENT}\n{_HANDLER}\n{_NESTED}\n{_EDITOR}"

ORDINARY = {"1": node("EmptyImage", width=8, height=8, batch_size=1, color=1), "2": node("PreviewImage", images=("1", 0))}
PLACED = {"yggdrasill": {"graphs": {"part": {"nodes": ["1"], "endpoint": "forge"}}}}
NAMES = {
    "endpoint": "The endpoint is off",
    "remote_graph": "The execution of graph nodes is off",
    "placement": "Placement of workflow parts is off",
    "nested_runs": "The execution of a workflow inside a waiting node is off",
    "editor": "The extension of the editor is off",
}


@pytest.mark.parametrize(
    "change, off",
    [
        pytest.param(_ENDPOINT, {"endpoint"}, id="endpoint"),
        pytest.param(_GRAPH_NODES, {"remote_graph"}, id="graph nodes"),
        pytest.param(_PLACEMENT, {"placement", "nested_runs"}, id="placement"),
        pytest.param(_HANDLER, {"placement"}, id="placement by its handler"),
        pytest.param(_NESTED, {"nested_runs"}, id="nested runs"),
        pytest.param(_EDITOR, {"editor"}, id="editor"),
        pytest.param(_EVERYTHING, set(NAMES), id="everything"),
    ],
)
def test_a_server_that_lacks_something_runs_prompts_and_refuses_what_it_cannot_do(servers: Servers, change: str, off: set[str]) -> None:
    server = start(servers, change, "-".join(sorted(off)))
    printed = server.printed()
    for feature, line in NAMES.items():
        assert printed.count(line) == (feature in off), feature
    assert server.run(ORDINARY)["status"]["status_str"] == "success"
    error = refused(server)
    assert "placement is off in this ComfyUI: " in error if "placement" in off else "is not up" in error
    assert len(server.get("/history")) == 1
    assert server.run({**ORDINARY, "1": node("EmptyImage", width=8, height=8, batch_size=1, color=2)})["status"]["status_str"] == "success"
    if "editor" in off:
        with pytest.raises(urllib.error.HTTPError) as caught:
            editor_status(server)
        with caught.value as answer:
            assert "is off in this ComfyUI" in answer.read().decode()
    else:
        assert set(editor_status(server)["here"]["off"]) == off
    server.stop()


def start(servers: Servers, change: str, name: str) -> Server:
    """Start a server whose ComfyUI is changed right before it loads the extension."""
    base = make_base_directory(servers.folder / f"lacks-{name}-{len(change)}", pack=False)
    pack = base / "custom_nodes" / "changed"
    pack.mkdir()
    (pack / "__init__.py").write_text(_PACK.format(change=change, init=str(ROOT / "__init__.py"), root=str(ROOT)), encoding="utf-8")
    data = base / "user" / "yggdrasill"
    data.mkdir(parents=True)
    (data / "endpoints.yaml").write_text("endpoints: {forge: {url: 'http://127.0.0.1:9'}}\n", encoding="utf-8")
    server = servers.start(base=base, pack=False)
    assert data_folder(server) == data
    return server


def editor_status(server: Server) -> Any:
    request = urllib.request.Request(server.url + "/yggdrasill/ui/status", headers={UI_HEADER: "1"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def refused(server: Server) -> str:
    """Post a prompt with a placed part, and return the reason why it is refused."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.post("/prompt", {"prompt": ORDINARY, "extra_data": PLACED})
    with caught.value as answer:
        assert answer.code == 400
        body: dict[str, Any] = json.loads(answer.read())
    assert body["node_errors"]["1"]["errors"][0]["details"] == body["error"]["details"]
    return str(body["error"]["details"])
