"""``yggdrasill place``: partition parts out of a ComfyUI workflow, show how, and run the whole."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yggdrasill.cli.console import Console
from yggdrasill.cli.endpoints import DEFAULT_FILE, open_registry
from yggdrasill.cli.workflows import Workflow, read_workflow
from yggdrasill.errors import InvalidArgument

if TYPE_CHECKING:
    from yggdrasill.remote.comfy_server import ComfyServer
    from yggdrasill.remote.partition import NodeSchemas
    from yggdrasill.remote.partition.placement_keys import PlacedParts

__all__ = ["add", "main"]

_SELECTION = "selection"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("workflow", metavar="WORKFLOW", help="an exported API prompt, a body of POST /prompt, or a PNG that ComfyUI saved")
    parser.add_argument(
        "--on", metavar="ENDPOINT", help="where the parts run, several replicas with commas (default: what the registry says)"
    )
    parser.add_argument("--nodes", metavar="IDS", help="the nodes of one part, with commas; a subgraph node stands for all inside")
    parser.add_argument(
        "--part", action="append", default=[], metavar="NAME", help="a part by the title of its subgraph or group; may be repeated"
    )
    parser.add_argument("--svg", metavar="FILE", help="draw the partitioned workflow")
    parser.add_argument("--run", action="store_true", help="run the whole workflow on the ComfyUI at --at")
    parser.add_argument(
        "--at", metavar="SERVER", help="the ComfyUI that runs the rest, by url or endpoint; of several with commas the least busy"
    )
    parser.add_argument("--out", metavar="DIR", help="where to write the files that the run saved")
    parser.add_argument("--file", default=str(DEFAULT_FILE), metavar="FILE", help="the endpoints.yaml (default: %(default)s)")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Show the partition, and run it if asked to."""
    from yggdrasill.cli.partitions import partition_picture, partition_text
    from yggdrasill.draw import draw_partition
    from yggdrasill.remote.partition import describe, partition_prompt
    from yggdrasill.values.files import write_file

    workflow = read_workflow(arguments.workflow)
    registry = open_registry(arguments.file, must_exist=False)
    servers = _servers(arguments, registry)
    extra = _extra_data(workflow, arguments)
    naming = _placed_parts(workflow, extra, registry, here=arguments.on is None)
    places = {placed.part.name: "|".join(placed.placement.endpoints) for placed in naming.parts}
    endpoints = sorted({name for placed in naming.parts for name in placed.placement.endpoints})
    schemas = _schemas(workflow.prompt, registry, endpoints, servers)
    partition = partition_prompt(workflow.prompt, [placed.part for placed in naming.parts], schemas)
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
    """What is posted along: the caller's parts in the place of those in the file, if any are given.

    Raises:
        InvalidArgument: parts without a place, or a place without parts.
    """
    if arguments.on is None:
        if arguments.nodes or arguments.part:
            raise InvalidArgument("--nodes and --part name what is placed; say where it runs with --on ENDPOINT")
        return workflow.extra_data
    names = _split(arguments.on)
    endpoint: Any = names[0] if len(names) == 1 else {"replicas": names}
    graphs: dict[str, Any] = {name: {"endpoint": endpoint} for name in arguments.part}
    if arguments.nodes or not graphs:
        graphs[_SELECTION] = {"nodes": _split(arguments.nodes) if arguments.nodes else list(workflow.prompt), "endpoint": endpoint}
    own = workflow.extra_data.get("yggdrasill")
    known = own.get("graphs") if isinstance(own, Mapping) else None
    chosen = {name: {**(known or {}).get(name, {}), **entry} for name, entry in graphs.items()}
    return {**workflow.extra_data, "yggdrasill": {"graphs": chosen}}


def _placed_parts(workflow: Workflow, extra: Mapping[str, Any], registry: Any, *, here: bool) -> PlacedParts:
    from yggdrasill.remote.partition.placement_keys import parts_of

    return parts_of(workflow.prompt, extra, registry.placements if here else {}, registry.endpoints)


def _servers(arguments: argparse.Namespace, registry: Any) -> list[ComfyServer]:
    from yggdrasill.remote.comfy_server import ComfyServer

    if arguments.run and not arguments.at:
        raise InvalidArgument("--run needs to know which ComfyUI runs the workflow; name it with --at URL or --at ENDPOINT")
    named = _split(arguments.at or "")
    return [ComfyServer(name) if "://" in name else ComfyServer(registry.endpoint(name).url, name) for name in named]


def _schemas(prompt: Mapping[str, Any], registry: Any, endpoints: Sequence[str], servers: Sequence[ComfyServer]) -> NodeSchemas:
    """The forms of the prompt's classes, from the endpoints that parts run on; of those they lack, from the ComfyUI of the rest."""
    from yggdrasill.remote.loop_thread import loop_thread
    from yggdrasill.remote.partition import NodeSchemas

    wanted = sorted({str(node["class_type"]) for node in prompt.values()})
    found = NodeSchemas()
    for name in endpoints:
        lacking = [each for each in wanted if each not in found]
        forms = loop_thread().run(registry.client(name).nodes(lacking)) if lacking else {"nodes": {}, "asks_again": []}
        found |= NodeSchemas.from_object_info(forms["nodes"], asks_again=forms["asks_again"])
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

        def told(kind: str, data: Mapping[str, Any]) -> None:
            nodes = data.get("nodes") if kind == "execution_cached" else [data.get("node")] if kind == "executing" else ()
            done.update(str(node) for node in nodes or () if node is not None)
            bar.n = min(len(done), len(workflow.prompt))
            bar.refresh()

        outputs = await server.run(workflow.prompt, extra, told)
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
    """The first of those with the fewest prompts; one that does not answer is passed over as long as another one does.

    Raises:
        EndpointUnreachable: none answers.
    """
    from yggdrasill.errors import EndpointUnreachable

    loads = await asyncio.gather(*(server.load() for server in servers), return_exceptions=True)
    answered = [(load, index) for index, load in enumerate(loads) if isinstance(load, int)]
    if answered:
        return servers[min(answered)[1]]
    failure = next((load for load in loads if isinstance(load, BaseException)), None)
    raise failure or EndpointUnreachable("there is no server to run the workflow at")


async def _save(server: ComfyServer, files: Sequence[Any], folder: Path) -> list[Path]:
    """Fetch the files and write them, all or none. A name is made of what the server calls the file, and leads nowhere else."""
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
    """An output node by id and class; one that another node made at run time has only an id."""
    return f"{node_id} {workflow.prompt[node_id]['class_type']}" if node_id in workflow.prompt else node_id


def _path(subfolder: str, name: str) -> str:
    return f"{subfolder}/{name}" if subfolder else name


def _split(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
