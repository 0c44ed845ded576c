"""Three ComfyUI servers, and the three ways to run a workflow on them: locally, with remote graphs, and from Python."""

from __future__ import annotations

import hashlib
import json
import shutil
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

import yggdrasill
from samples.comfy import Installation, Server, Servers, make_base_directory
from samples.conformance.workflow import (
    CAPTURE,
    Drawing,
    Link,
    Prompt,
    ServedPrompt,
    Types,
    as_graph,
    as_parts,
    with_ancestors,
    with_remote_nodes,
    without,
)
from yggdrasill import RemoteGraph

__all__ = ["Lab", "Outcome", "Trace", "versions_of"]

_SCRIPTS = Path(__file__).resolve().parent.parent.parent / "comfy"
_MODEL_FILES = {"tiny.ckpt", "tiny.pt"}
_API = "/yggdrasill/v1"
_LONGEST = 250.0


@dataclass(frozen=True)
class Outcome:
    """The result of a run: the record of each capture (None if blocked), and the hashes of saved files."""

    notes: dict[str, Any]
    files: dict[str, list[str]]


@dataclass(frozen=True)
class Trace:
    """The jobs of one run: the node ids that each part ran, and the number of previews."""

    nodes: tuple[frozenset[str], ...]
    previews: int


def versions_of(server: Server) -> dict[str, str]:
    """The versions that determine a server's results."""
    facts = server.get("/system_stats")["system"]
    return {
        "Yggdrasill": yggdrasill.__version__,
        "ComfyUI": facts["comfyui_version"],
        "Python": facts["python_version"].split()[0],
        "torch": facts["pytorch_version"],
        "on": facts["os"],
    }


@dataclass(eq=False)
class Lab:
    """The servers, started on demand. Each has its own token; the first knows the others."""

    servers: Servers
    folder: Path
    _running: list[Server] = field(default_factory=list)
    _types: Types | None = None
    _has_models: bool = False

    @property
    def installation(self) -> Installation:
        return self.servers.installation

    def server(self, number: int) -> Server:
        """Return the server with this number; 0 has the workflows, the others their parts."""
        while len(self._running) <= number:
            self._start(len(self._running))
        return self._running[number]

    def _start(self, number: int) -> None:
        base = make_base_directory(self.folder / f"lab-{number}")
        shutil.copy(Path(__file__).parent / "capture.py", base / "custom_nodes" / "conformance_nodes.py")
        if number == 0:
            self._script("materials.py", base / "input")
        elif self._has_models:
            shutil.copytree(self.folder / "lab-0" / "models", base / "models", dirs_exist_ok=True)
        tokens = {f"LAB_TOKEN_{other}": _token(other) for other in range(1, 3)} if number == 0 else {}
        flags = ("--disable-metadata", "--cache-lru", "50", "--preview-method", "latent2rgb")
        server = self.servers.start(*flags, base=base, environment={"YGGDRASILL_TOKEN": _token(number), **tokens})
        self._running.append(server)
        known = {f"lab-{each}": {"url": self._running[each].url, "token_env": f"LAB_TOKEN_{each}"} for each in range(1, number + 1)}
        registry = self.folder / "lab-0" / "user" / "yggdrasill" / "endpoints.yaml"
        registry.parent.mkdir(exist_ok=True)
        registry.write_text(json.dumps({"endpoints": known}), encoding="utf-8")

    def _script(self, name: str, *arguments: Path) -> None:
        done = self.installation.run(_SCRIPTS / name, *map(str, arguments))
        assert done.returncode == 0, f"{name} failed:\n{done.stderr[-3000:]}"

    def prepare(self, drawing: Drawing) -> list[ServedPrompt]:
        """Return the parts of a drawing, with the required servers running and the models present."""
        for part in drawing.parts:
            self.server(part.server)
        if not self._has_models and _needs_models(drawing.prompt):
            self._script("checkpoint.py", self.server(0).base / "models")
            self._has_models = True
            for server in self._running[1:]:
                shutil.copytree(self.server(0).base / "models", server.base / "models", dirs_exist_ok=True)
        return as_parts(drawing, self.types)

    @property
    def types(self) -> Types:
        """Return the types of all nodes on the first server."""
        if self._types is None:
            self._types = Types(self.server(0).get("/object_info"))
        return self._types

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions that determine the results."""
        return versions_of(self.server(0))

    # -- the ways to run ----------------------------------------------------------------------------------------

    def here(self, prompt: Prompt) -> Outcome:
        """Run a prompt on the first server as a browser queues it."""
        server = self.server(0)
        answer = _queued(server, prompt)
        assert not answer["node_errors"], json.dumps(answer["node_errors"])
        entry = server.wait_for(answer["prompt_id"], timeout=_LONGEST)
        failed = [facts for kind, facts in entry["status"]["messages"] if kind == "execution_error"]
        assert entry["status"]["status_str"] == "success", [f"{facts['node_id']}: {facts['exception_message'][-2000:]}" for facts in failed]
        notes = {node: None for node, facts in prompt.items() if facts["class_type"] == CAPTURE}
        files: dict[str, list[str]] = {}
        for node, output in entry["outputs"].items():
            if node in notes:
                notes[node] = json.loads(output["note"][0])
            else:
                files[node] = [
                    _file_hash(server, item) for listed in output.values() if isinstance(listed, list) for item in listed if _is_file(item)
                ]
        return Outcome(notes, {node: hashes for node, hashes in files.items() if hashes})

    def with_remote_graphs(self, name: str, drawing: Drawing, parts: list[ServedPrompt]) -> tuple[Outcome, Trace]:
        """Deploy the parts, and run the rest with a Remote Graph node for each."""
        ids, prompt = self.remote_prompt(name, drawing, parts)
        outcome = self.here(prompt)
        return outcome, self._trace(ids, parts)

    def remote_prompt(self, name: str, drawing: Drawing, parts: list[ServedPrompt]) -> tuple[list[str], Prompt]:
        """Deploy the parts; return their ids, and the prompt with a Remote Graph node for each."""
        ids = [f"{name}-{number}" for number in range(len(parts))]
        contracts = [self.serve(part.server, graph_id, part.prompt) for graph_id, part in zip(ids, parts, strict=True)]
        settings = [
            {"graph": graph_id, "endpoint": f"lab-{part.server}", "contract": json.dumps(contract), "seed": 0}
            for graph_id, part, contract in zip(ids, parts, contracts, strict=True)
        ]
        return ids, with_remote_nodes(drawing.prompt, parts, settings)

    async def previews(self, prompt: Prompt) -> list[tuple[str, bytes]]:
        """Run a prompt on the first server, and return node id and encoded image of each preview."""
        shown: list[tuple[str, bytes]] = []
        server, page = self.server(0), uuid.uuid4().hex
        async with aiohttp.ClientSession(server.url) as session, session.ws_connect("/ws", params={"clientId": page}) as socket:
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            async with session.post("/prompt", json={"prompt": prompt, "client_id": page}) as answer:
                prompt_id = (await answer.json())["prompt_id"]
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    shown += _preview(message.data)
                elif message.type is aiohttp.WSMsgType.TEXT and _is_end(json.loads(message.data), prompt_id):
                    break
        return shown

    def from_python(self, name: str, drawing: Drawing, parts: list[ServedPrompt]) -> dict[str, Any]:
        """Call the parts from this process; the first server runs the nodes before and after them. Return the records."""
        values: dict[Link, Any] = {}
        prompt = drawing.prompt
        moved = [node for part in parts for node in part.nodes]
        for number, part in enumerate(parts):
            needed = [port.source for port in part.inputs]
            self._fill(f"{name}-before-{number}", drawing, [link for link in needed if link[0] not in moved], values)
            self._call(part.server, f"{name}-{number}", part, values)
        lost = [port.source for part in parts for port in part.outputs if port.source not in values]
        notes: list[Link] = [(node, 0) for node in prompt if prompt[node]["class_type"] == CAPTURE]
        reached = without(prompt, lost)
        self._fill(f"{name}-behind", drawing, [link for link in notes if link[0] in reached], values)
        return {link[0]: json.loads(values[link]) if link in values else None for link in notes}

    def _fill(self, graph_id: str, drawing: Drawing, links: list[Link], values: dict[Link, Any]) -> None:
        """Compute ``links`` on the first server from the known ``values``."""
        missing = [link for link in dict.fromkeys(links) if link not in values]
        if missing:
            moved = [node for part in drawing.parts for node in part.nodes]
            nodes = with_ancestors(drawing.prompt, [link[0] for link in missing], stop=moved)
            self._call(0, graph_id, as_graph(drawing.prompt, nodes, missing, self.types), values)

    def _call(self, server: int, graph_id: str, part: ServedPrompt, values: dict[Link, Any]) -> None:
        self.serve(server, graph_id, part.prompt)
        remote = RemoteGraph(self.server(server).url, graph_id, token=_token(server), timeout=_LONGEST)
        outputs = remote.run({port.name: values[port.source] for port in part.inputs})
        values.update({port.source: outputs[port.name] for port in part.outputs if port.name in outputs})

    # -- routes -------------------------------------------------------------------------------------------------

    def serve(self, server: int, graph_id: str, prompt: Prompt) -> dict[str, Any]:
        """Deploy a workflow by plain HTTP, and return its contract."""
        config = {"kind": "comfy", "graph_id": graph_id, "prompt": prompt}
        self.call(server, "PUT", f"/graphs/{graph_id}", {"kind": "comfy", "config": config, "wait": 60})
        contract: dict[str, Any] = self.call(server, "GET", f"/graphs/{graph_id}/contract")
        return contract

    def call(self, server: int, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON of a route of the endpoint."""
        with urllib.request.urlopen(self._request(server, method, path, body), timeout=60) as answer:
            return json.loads(answer.read())

    def _request(self, server: int, method: str, path: str, body: Mapping[str, Any] | None = None) -> urllib.request.Request:
        headers = {"Authorization": f"Bearer {_token(server)}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(self.server(server).url + _API + path, data=data, headers=headers, method=method)

    def _trace(self, ids: list[str], parts: list[ServedPrompt]) -> Trace:
        nodes, previews = [], 0
        for graph_id, part in zip(ids, parts, strict=True):
            ran: set[str] = set()
            for job in self.call(part.server, "GET", f"/jobs?graph_id={graph_id}&limit=1")["jobs"]:
                assert job["status"] == "COMPLETED", job
                for facts in self._events(part.server, job["job_id"]):
                    ran |= {str(facts["node"])} if facts.get("what") == "executing" else set(facts.get("nodes") or ())
                    previews += facts.get("what") == "preview"
            nodes.append(frozenset(ran) & frozenset(part.nodes))
        return Trace(tuple(nodes), previews)

    def _events(self, server: int, job_id: str) -> list[dict[str, Any]]:
        """Return ComfyUI's messages during a finished job."""
        request = self._request(server, "GET", f"/jobs/{job_id}/events")
        request.add_header("Accept", "text/event-stream")
        request.add_header("Last-Event-ID", "0")
        with urllib.request.urlopen(request, timeout=60) as stream:
            lines = stream.read().decode("utf-8").splitlines()
        return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


def _queued(server: Server, prompt: Prompt) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = server.post("/prompt", {"prompt": prompt})
    except urllib.error.HTTPError as error:
        raise AssertionError(f"ComfyUI refuses the prompt: {error.read().decode()[:3000]}") from None
    return answer


def _preview(message: bytes) -> list[tuple[str, bytes]]:
    """Return the preview in a binary message: u32 4, u32 length, JSON, image."""
    if int.from_bytes(message[:4], "big") != 4:
        return []
    length = int.from_bytes(message[4:8], "big")
    return [(json.loads(message[8 : 8 + length])["node_id"], message[8 + length :])]


def _is_end(message: Mapping[str, Any], prompt_id: str) -> bool:
    data = message.get("data") or {}
    return data.get("prompt_id") == prompt_id and message["type"] in ("execution_success", "execution_error", "execution_interrupted")


def _token(number: int) -> str:
    return uuid.uuid5(uuid.NAMESPACE_URL, f"conformance/{number}").hex


def _needs_models(prompt: Prompt) -> bool:
    return any(value in _MODEL_FILES for node in prompt.values() for value in node["inputs"].values() if isinstance(value, str))


def _is_file(item: Any) -> bool:
    return isinstance(item, dict) and {"filename", "subfolder", "type"} <= item.keys()


def _file_hash(server: Server, item: Mapping[str, str]) -> str:
    path = server.base / item["type"] / item["subfolder"] / item["filename"]
    return hashlib.sha256(path.read_bytes()).hexdigest()
