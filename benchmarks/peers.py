"""LangGraph, Haystack and Hamilton on the work of `benchmarks.shapes`, each used as in its documentation.

Their modules are imported by name, because a development environment lacks them.
"""

from __future__ import annotations

import importlib
import operator
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any, TypedDict

from benchmarks.shapes import START, Part

__all__ = ["PEERS", "Run", "peer_version"]

#: One complete run; returns the value of the last node.
Run = Callable[[], int]

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
os.environ.setdefault("HAMILTON_TELEMETRY_ENABLED", "false")
os.environ.setdefault("LANGSMITH_TRACING", "false")


def _langgraph(shape: str, parts: list[Part], start: int) -> Run:
    """Build a compiled StateGraph without a checkpointer, with the leanest state for the shape: one channel for a chain, a list
    with a reducer for a fan-out, one channel per node otherwise."""
    graphs = importlib.import_module("langgraph.graph")
    schema, wire = {"chain": _one_channel, "wide": _list_channel, "layered": _own_channels}[shape](parts)
    graph = graphs.StateGraph(schema)
    for part in parts:
        reads, act = wire(part)
        graph.add_node(f"{part.name}_", act, input_schema=reads)
        sources = [graphs.START if name == START else f"{name}_" for name in part.sources]
        graph.add_edge(sources[0] if len(sources) == 1 else sources, f"{part.name}_")
    compiled = graph.compile()
    given, last, config = {START: start, "value": start}, parts[-1].name, {"recursion_limit": len(parts) + 5}
    given = {key: value for key, value in given.items() if key in schema.__annotations__}
    answer = "value" if shape == "chain" else last
    return lambda: int(compiled.invoke(given, config)[answer])


def _one_channel(parts: list[Part]) -> tuple[Any, Callable[[Part], tuple[Any, Any]]]:
    state: Any = TypedDict("state", {"value": int})
    return state, lambda part: (state, lambda values: {"value": values["value"] + 1})


def _list_channel(parts: list[Part]) -> tuple[Any, Callable[[Part], tuple[Any, Any]]]:
    rays = Annotated[list[int], operator.add]
    fields = {START: int, "first": int, "rays": rays, "last": int}
    state: Any = TypedDict("state", fields)  # type: ignore[misc]

    def wire(part: Part) -> tuple[Any, Any]:
        if part.name == "first":
            return state, lambda values: {"first": values[START] + 1}
        if part.name == "last":
            return state, lambda values: {"last": sum(values["rays"])}
        return state, lambda values: {"rays": [values["first"] + 1]}

    return state, wire


def _own_channels(parts: list[Part]) -> tuple[Any, Callable[[Part], tuple[Any, Any]]]:
    state: Any = TypedDict("state", {START: int, **{part.name: int for part in parts}})  # type: ignore[misc]

    def wire(part: Part) -> tuple[Any, Any]:
        reads: Any = TypedDict("reads", dict.fromkeys(part.sources, int))  # type: ignore[misc]
        name, sources = part.name, part.sources
        if part.kind == "step":
            (source,) = sources
            return reads, lambda values: {name: values[source] + 1}
        if part.kind == "add":
            a, b = sources
            return reads, lambda values: {name: values[a] + values[b]}
        return reads, lambda values: {name: sum(values[source] for source in sources)}

    return state, wire


def _haystack(shape: str, parts: list[Part], start: int) -> Run:
    """Build a Pipeline of components; the last one has a variadic input."""
    haystack = importlib.import_module("haystack")
    variadic = importlib.import_module("haystack.core.component.types").Variadic
    kinds = {
        "step": _component(haystack, lambda self, x: {"y": x + 1}, {"x": int}),
        "add": _component(haystack, lambda self, a, b: {"y": a + b}, {"a": int, "b": int}),
        "total": _component(haystack, lambda self, xs: {"y": sum(xs)}, {"xs": variadic[int]}),
    }
    sockets = {"step": ("x",), "add": ("a", "b")}
    pipeline = haystack.Pipeline()
    for part in parts:
        pipeline.add_component(part.name, kinds[part.kind]())
    for part in parts:
        for i, source in enumerate(part.sources):
            if source != START:
                pipeline.connect(f"{source}.y", f"{part.name}.{sockets[part.kind][i] if part.kind in sockets else 'xs'}")
    given = {part.name: {"x": start} for part in parts if part.sources == (START,)}
    last = parts[-1].name
    return lambda: int(pipeline.run(given)[last]["y"])


def _component(haystack: Any, act: Any, inputs: dict[str, Any]) -> Any:
    act.__annotations__ = inputs
    act.__name__ = "run"
    return haystack.component(type("Part", (), {"run": haystack.component.output_types(y=int)(act)}))


def _step(x: int) -> int:
    return x + 1


def _add(a: int, b: int) -> int:
    return a + b


def _total(xs: list[int]) -> int:
    return sum(xs)


def _hamilton(shape: str, parts: list[Part], start: int) -> Run:
    """Build a Driver over one parameterised function per kind of node that computes the last node."""
    modifiers = importlib.import_module("hamilton.function_modifiers")
    source, group = modifiers.source, modifiers.group
    functions = []
    for kind, act in (("step", _step), ("add", _add), ("total", _total)):
        nodes: dict[str, dict[str, Any]] = {}
        for part in parts:
            if part.kind == kind and kind == "total":
                nodes[part.name] = {"xs": group(*map(source, part.sources))}
            elif part.kind == kind:
                nodes[part.name] = dict(zip(("x",) if kind == "step" else ("a", "b"), map(source, part.sources), strict=True))
        if nodes:
            function = _copy(act, f"{kind}_of_{shape}")
            functions.append(modifiers.parameterize(**nodes)(function))
    module = importlib.import_module("hamilton.ad_hoc_utils").create_temporary_module(*functions)
    driver = importlib.import_module("hamilton.driver").Builder().with_modules(module).build()
    last, given = parts[-1].name, {START: start}
    return lambda: int(driver.execute([last], inputs=given)[last])


def _copy(act: Any, name: str) -> Any:
    copied = type(act)(act.__code__, act.__globals__, name)
    copied.__annotations__ = {**dict.fromkeys(act.__annotations__, int), **({"xs": list[int]} if "xs" in act.__annotations__ else {})}
    return copied


def peer_version(name: str) -> str:
    """Return the installed version of a peer's distribution."""
    return version({"LangGraph": "langgraph", "Haystack": "haystack-ai", "Hamilton": "sf-hamilton"}[name])


#: ``peer(shape, parts, start)`` builds the graph and returns one run of it; ImportError if the peer is not installed.
PEERS: dict[str, Callable[[str, list[Part], int], Run]] = {"Hamilton": _hamilton, "LangGraph": _langgraph, "Haystack": _haystack}
