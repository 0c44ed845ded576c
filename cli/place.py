"""``yggdrasill place``: split a ComfyUI workflow into local nodes and remote calls, show the partition, and run it."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yggdrasill.cli.console import Console
from yggdrasill.cli.endpoints import DEFAULT_FILE, open_registry
from yggdrasill.cli.workflows import Workflow, read_workflow
from yggdrasill.errors import InvalidArgument
from yggdrasill.remote.comfy_ports import is_link
from yggdrasill.remote.partition.parts import describe

if TYPE_CHECKING:
    from yggdrasill.remote.comfy_server import ComfyServer
    from yggdrasill.remote.partition import NodeSchemas
    from yggdrasill.remote.partition.parts import PartCall, Partition
    from yggdrasill.remote.partition.placement_keys import PlacedParts
    from yggdrasill.remote.partition.schemas import NodeSchema

__all__ = ["add", "main", "partition_picture", "partition_text"]

_SELECTION = "selection"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("workflow", metavar="WORKFLOW", help="an exported API prompt, a body of POST /prompt, or a PNG that ComfyUI saved")
    parser.add_argument(
        "--on",
        metavar="ENDPOINT",
        help="the endpoint of the parts, or replicas separated by commas (default: the placements of the registry)",
    )
    parser.add_argument(
        "--nodes", metavar="IDS", help="the node ids of one part, separated by commas; a subgraph node includes all nodes in it"
    )
    parser.add_argument(
        "--part", action="append", default=[], metavar="NAME", help="a part by the title of its subgraph or group; may be repeated"
    )
    parser.add_argument("--svg", metavar="FILE", help="write a drawing of the partitioned workflow")
    parser.add_argument("--run", action="store_true", help="run the workflow on the ComfyUI given by --at")
    parser.add_argument(
        "--at",
        metavar="SERVER",
        help="the ComfyUI that runs the local nodes, as URL or endpoint; of several separated by commas the least busy",
    )
    parser.add_argument("--out", metavar="DIR", help="the folder to write the saved files of the run to")
    parser.add_argument("--file", default=str(DEFAULT_FILE), metavar="FILE", help="the endpoints.yaml (default: %(default)s)")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Show the partition, run it with ``--run``, and return the exit code."""
    from yggdrasill.draw import draw_partition
    from yggdrasill.remote.node_traits import shipped_traits
    from yggdrasill.remote.partition import partition_prompt
    from yggdrasill.values.files import write_file

    workflow = read_workflow(arguments.workflow)
    registry = open_registry(arguments.file, must_exist=False)
    servers = _servers(arguments, registry)
    extra = _extra_data(workflow, arguments)
    placed_parts = _placed_parts(workflow, extra, registry, use_registry=arguments.on is None)
    places = {placed.part.name: "|".join(placed.placement.endpoints) for placed in placed_parts.parts}
    endpoints = sorted({name for placed in placed_parts.parts for name in placed.placement.endpoints})
    schemas = _schemas(workflow.prompt, registry, endpoints, servers)
    partition = partition_prompt(workflow.prompt, [placed.part for placed in placed_parts.parts], schemas, host=shipped_traits().facts())
    console.say(partition_text(partition, workflow.prompt, places))
    result: dict[str, Any] = {**describe(partition), "places": places}
    if arguments.svg:
        picture = partition_picture(partition, workflow.prompt, places, schemas)
        write_file(arguments.svg, draw_partition(picture, title=workflow.name).encode("utf-8"))
        console.say(f"wrote {arguments.svg}")
        result["svg"] = arguments.svg
    if arguments.run:
        result["run"] = asyncio.run(_run(servers, workflow, extra, arguments.out, console))
    console.result(result)
    return 0


def _extra_data(workflow: Workflow, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the ``extra_data`` of the request: the parts on the command line replace those in the file.

    Raises:
        InvalidArgument: parts without an endpoint.
    """
    if arguments.on is None:
        if arguments.nodes or arguments.part:
            raise InvalidArgument("--nodes and --part select parts; name their endpoint with --on ENDPOINT")
        return workflow.extra_data
    names = _split(arguments.on)
    endpoint: Any = names[0] if len(names) == 1 else {"replicas": names}
    graphs: dict[str, Any] = {name: {"endpoint": endpoint} for name in arguments.part}
    if arguments.nodes or not graphs:
        graphs[_SELECTION] = {"nodes": _split(arguments.nodes) if arguments.nodes else list(workflow.prompt), "endpoint": endpoint}
    saved = workflow.extra_data.get("yggdrasill")
    known = saved.get("graphs") if isinstance(saved, Mapping) else None
    chosen = {name: {**(known or {}).get(name, {}), **entry} for name, entry in graphs.items()}
    return {**workflow.extra_data, "yggdrasill": {**(saved if isinstance(saved, Mapping) else {}), "graphs": chosen}}


def _placed_parts(workflow: Workflow, extra: Mapping[str, Any], registry: Any, *, use_registry: bool) -> PlacedParts:
    from yggdrasill.remote.partition.placement_keys import parts_of

    return parts_of(workflow.prompt, extra, registry.placements if use_registry else {}, registry.endpoints)


def _servers(arguments: argparse.Namespace, registry: Any) -> list[ComfyServer]:
    from yggdrasill.remote.comfy_server import ComfyServer

    if arguments.run and not arguments.at:
        raise InvalidArgument("--run needs a ComfyUI; name it with --at URL or --at ENDPOINT")
    named = _split(arguments.at or "")
    return [ComfyServer(name) if "://" in name else ComfyServer(registry.endpoint(name).url, name) for name in named]


def _schemas(prompt: Mapping[str, Any], registry: Any, endpoints: Sequence[str], servers: Sequence[ComfyServer]) -> NodeSchemas:
    """Return the schemas of the prompt's node classes, from the endpoints of the parts, else from the ComfyUI given by ``--at``."""
    from yggdrasill.remote.loop_thread import loop_thread
    from yggdrasill.remote.partition import NodeSchemas

    wanted = sorted({str(node["class_type"]) for node in prompt.values()})
    found = NodeSchemas()
    for name in endpoints:
        lacking = [each for each in wanted if each not in found]
        forms = loop_thread().run(registry.client(name).nodes(lacking)) if lacking else {"nodes": {}, "asks_again": []}
        found |= NodeSchemas.from_object_info(forms["nodes"], asks_again=forms["asks_again"], loops=forms.get("loops"))
    lacking = [each for each in wanted if each not in found]
    if endpoints and servers and lacking:
        found |= NodeSchemas.from_object_info(asyncio.run(servers[0].node_classes(lacking)))
    return found


# -- running ----------------------------------------------------------------------------------------------------


async def _run(
    servers: Sequence[ComfyServer], workflow: Workflow, extra: Mapping[str, Any], out: str | None, console: Console
) -> dict[str, Any]:
    from yggdrasill.remote.comfy_server import saved_files

    server = await _least_busy(servers)
    done: set[str] = set()
    with console.progress(len(workflow.prompt), workflow.name) as bar:

        def on_event(kind: str, data: Mapping[str, Any]) -> None:
            nodes = data.get("nodes") if kind == "execution_cached" else [data.get("node")] if kind == "executing" else ()
            done.update(str(node) for node in nodes or () if node is not None)
            bar.n = min(len(done), len(workflow.prompt))
            bar.refresh()

        outputs = await server.run(workflow.prompt, extra, on_event)
    files = saved_files(outputs)
    written = await _save(server, files, Path(out)) if out else []
    console.say(f"\nran at {server.name}")
    for file in files:
        console.say(f"  {_label(workflow, file.node_id)}: {file.folder}/{_path(file.subfolder, file.filename)}")
    for node_id, words in _texts(outputs):
        console.say(f"  {_label(workflow, node_id)}: {words}")
    for path in written:
        console.say(f"wrote {path}")
    return {"server": server.name, "outputs": outputs, "files": [str(path) for path in written]}


async def _least_busy(servers: Sequence[ComfyServer]) -> ComfyServer:
    """Return the server with the fewest prompts, ignoring servers that do not answer.

    Raises:
        EndpointUnreachable: no server answers.
    """
    from yggdrasill.errors import EndpointUnreachable

    loads = await asyncio.gather(*(server.load() for server in servers), return_exceptions=True)
    answered = [(load, index) for index, load in enumerate(loads) if isinstance(load, int)]
    if answered:
        return servers[min(answered)[1]]
    failure = next((load for load in loads if isinstance(load, BaseException)), None)
    raise failure or EndpointUnreachable("no server to run the workflow")


async def _save(server: ComfyServer, files: Sequence[Any], folder: Path) -> list[Path]:
    """Fetch the files and write them, all or none. The server's file names are reduced to safe names in ``folder``."""
    from yggdrasill.values.files import FileSet

    written: list[Path] = []
    with FileSet() as saved:
        for file in files:
            name = re.sub(r"[^\w.\- ]+", "_", _path(file.subfolder, file.filename)).lstrip(".") or "file"
            path = folder / (name if folder / name not in written else f"{file.node_id}-{name}")
            saved.write(path, await server.fetch(file))
            written.append(path)
    return written


def _texts(outputs: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (node_id, " ".join(map(str, output["text"])))
        for node_id, output in outputs.items()
        if isinstance(output, Mapping) and isinstance(output.get("text"), list)
    ]


def _label(workflow: Workflow, node_id: str) -> str:
    """Return an output node as id and class; a node created at run time has only an id."""
    return f"{node_id} {workflow.prompt[node_id]['class_type']}" if node_id in workflow.prompt else node_id


def _path(subfolder: str, name: str) -> str:
    return f"{subfolder}/{name}" if subfolder else name


def _split(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


# -- the partition as text and as a picture ---------------------------------------------------------------------


def partition_text(partition: Partition, prompt: Mapping[str, Any], places: Mapping[str, str]) -> str:
    """Return as text what runs where, which values cross, what is copied, and what stays local and why.

    ``places`` has the endpoints of each part by its name.
    """
    return "\n".join(_lines(partition, prompt, places))


def _lines(partition: Partition, prompt: Mapping[str, Any], places: Mapping[str, str]) -> Iterator[str]:
    facts = describe(partition)
    for part in facts["parts"]:
        yield f"{part['name']} runs at {places[part['name']]}" + (f", in {len(part['calls'])} stages" if len(part["calls"]) > 1 else "")
        for call in part["calls"]:
            if len(part["calls"]) > 1:
                yield f"  stage {call['stage'] + 1}"
            yield f"  nodes   {_named(call['nodes'], prompt)}"
            if call["copies"]:
                yield f"  copies  {_named(call['copies'], prompt)}"
            yield from (f"  input   {port['name']} {port['type']}{_from(port['from'])}" for port in call["inputs"])
            yield from (f"  output  {port['name']} {port['type']}" for port in call["outputs"])
            if call["asks_again"]:
                yield "  called in every run: it contains nodes whose results may change"
        yield ""
    yield f"local     {_named(facts['here'], prompt)}"
    yield from (f"stays     {_named([node], prompt)}: {reason}" for node, reason in facts["stays"].items())
    if facts["kept"]:
        yield f"copied    {_named(facts['kept'], prompt)}"
    if facts["dropped"]:
        yield f"unused    {_named(facts['dropped'], prompt)}: no requested output needs it"


def _named(nodes: Iterable[str], prompt: Mapping[str, Any]) -> str:
    return ", ".join(f"{node} {prompt[node]['class_type']}" for node in nodes) or "nothing"


def _from(source: str) -> str:
    return "" if source == "here" else f", from {source}"


def partition_picture(
    partition: Partition, prompt: Mapping[str, Any], places: Mapping[str, str], schemas: Mapping[str, NodeSchema]
) -> dict[str, Any]:
    """Return what `draw_partition` draws: the nodes and edges of the partitioned prompt, with one node for each call.

    ``schemas`` give the output types of local nodes.
    """
    calls = {call.node_id: call for call in partition.calls}
    staged = {call.part for call in partition.calls if call.stage}
    nodes = [
        _call_node(calls[node_id], prompt, places, staged) if node_id in calls else _node(node_id, prompt) for node_id in partition.prompt
    ]
    edges = [edge for target in partition.prompt for edge in _edges(target, partition.prompt, calls, schemas)]
    return {"nodes": nodes, "edges": edges}


def _call_node(call: PartCall, prompt: Mapping[str, Any], places: Mapping[str, str], staged: Collection[str]) -> dict[str, Any]:
    inner = [_node(node, prompt) | {"copy": node in call.copies} for node in (*call.copies, *call.nodes)]
    known = {node["node_id"] for node in inner}
    edges = [edge for node in known for edge in _edges(node, call.prompt, {}, {}) if edge["source_node"] in known]
    count = len(call.nodes)
    return {
        "node_id": call.node_id,
        "title": f"{call.part}, stage {call.stage + 1}" if call.part in staged else call.part,
        "class_type": f"{count} node{'' if count == 1 else 's'}",
        "place": places[call.part],
        "inside": {"nodes": inner, "edges": sorted(edges, key=lambda edge: sorted(edge.items()))},
    }


def _node(node_id: str, prompt: Mapping[str, Any]) -> dict[str, Any]:
    node = prompt[node_id]
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    about = "" if title in (None, node["class_type"]) else node["class_type"]
    return {"node_id": node_id, "title": f"{node_id} {title or node['class_type']}", "class_type": about}


def _edges(
    target: str, prompt: Mapping[str, Any], calls: Mapping[str, PartCall], schemas: Mapping[str, NodeSchema]
) -> Iterator[dict[str, str]]:
    for name, value in prompt[target].get("inputs", {}).items():
        if is_link(value) and value[0] in prompt:
            source, slot = value
            schema = schemas.get(prompt[source]["class_type"])
            socket = schema.output_type(slot) if schema is not None else str(slot)
            yield {
                "source_node": source,
                "source_port": _given(calls[source], slot) if source in calls else socket,
                "target_node": target,
                "target_port": _taken(calls[target], name) if target in calls else name,
            }


def _given(call: PartCall, slot: int) -> str:
    return f"{call.outputs[slot].type} {call.outputs[slot].name}"


def _taken(call: PartCall, name: str) -> str:
    port = call.inputs[int(name.removeprefix("ports.p"))]
    return f"{port.type} {port.name}"
