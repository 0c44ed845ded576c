"""Prompts with the nodes for graphs, pipelines, stages and worlds, and their results."""

from __future__ import annotations

from typing import Any

from samples.comfy_graphs import Caller, graph_output, node

__all__ = ["add_block", "error_of", "pasted", "value_of", "values_of"]


def add_block(block: str, name: str = "", graph: tuple[str, int] | None = None, graph_id: str = "graph", **settings: Any) -> dict[str, Any]:
    """Return an Add Block node; ``settings`` are those of the block."""
    link = {} if graph is None else {"graph": graph}
    values = {f"block.{key}": value for key, value in settings.items()}
    return node("YggdrasillAddBlock", name=name, graph_id=graph_id, auto_connect=True, block=block, **link, **values)


def pasted(level: str, config: Any) -> dict[str, Any]:
    """Return a node that loads a config from text."""
    import json

    class_type = {"graph": "YggdrasillLoadGraph", "pipeline": "YggdrasillLoadPipeline", "stage": "YggdrasillLoadStage"}
    text = config if isinstance(config, str) else json.dumps(config)
    return node(class_type.get(level, "YggdrasillWorld"), source="text", **{"source.text": text})


def values_of(caller: Caller, prompt: dict[str, Any], **outputs: tuple[str, int]) -> dict[str, Any]:
    """Run a prompt on the endpoint inside a ComfyUI and return the values of the named outputs."""
    sinks = {f"sink-{name}": graph_output(name, place) for name, place in outputs.items()}
    return caller.deploy("levels", {**prompt, **sinks}).run({})


def value_of(caller: Caller, prompt: dict[str, Any], place: tuple[str, int]) -> Any:
    """Return the value of one output, as `values_of`."""
    return values_of(caller, prompt, value=place)["value"]


def error_of(caller: Caller, prompt: dict[str, Any]) -> dict[str, Any]:
    """Run a prompt on ComfyUI's queue, and return the error of its last node."""
    last = max(prompt, key=int)
    entry = caller.server.run({**prompt, str(int(last) + 1): node("PreviewAny", source=(last, 0))})
    found: dict[str, Any] = next(facts for kind, facts in entry["status"]["messages"] if kind == "execution_error")
    return found
