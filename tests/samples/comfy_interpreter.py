"""A small interpreter of API prompts with the semantics of ComfyUI's executor: lists, lazy inputs, blockers, and placed parts.

A node's function returns a hash of its inputs, so that equal results mean equal computations.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE, is_link
from yggdrasill.remote.partition import PLACED_NODE, NodeSchema

__all__ = ["BLOCKED", "Blocked", "Interpreter", "Stuck", "short_hash"]


@dataclass(frozen=True)
class Blocked:
    """An ExecutionBlocker."""


BLOCKED = Blocked()
#: Per class: what it does with single values (or lists, for a class that takes lists); a tuple of outputs.
Function = Callable[..., tuple[Any, ...]]


class Stuck(AssertionError):
    """A value that is not transferable would cross a port."""


def short_hash(*parts: Any) -> str:
    """Return a short hash of the arguments."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()


@dataclass
class Interpreter:
    """One run of a prompt. ``calls`` counts the function calls by node, ``results`` holds the inputs of output nodes in order.

    ``asked(class, inputs)`` returns the names of the lazy inputs that a node requests. ``stuck(value)`` returns whether a value is not
    transferable. ``blocked_calls`` are placed nodes that a blocker stopped.
    """

    prompt: Mapping[str, Any]
    schemas: Mapping[str, NodeSchema]
    functions: Mapping[str, Function]
    asked: Mapping[str, Callable[[Mapping[str, Any]], list[str]]]
    stuck: Callable[[Any], bool]
    ports: Mapping[str, list[Any]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    results: dict[str, list[Any]] = field(default_factory=dict)
    given: dict[str, list[Any]] = field(default_factory=dict)
    blocked_calls: set[str] = field(default_factory=set)
    _values: dict[str, list[list[Any]]] = field(default_factory=dict)
    _open: set[str] = field(default_factory=set)

    def run(self, targets: set[str] | None = None) -> Interpreter:
        """Run all output nodes, or those in ``targets``."""
        for node_id, node in self.prompt.items():
            schema = self.schemas.get(node["class_type"])
            is_output = node["class_type"] == OUTPUT_NODE or (schema is not None and schema.is_output_node)
            if is_output and (targets is None or node_id in targets):
                self._outputs_of(node_id)
        return self

    def value_of(self, node_id: str) -> list[list[Any]]:
        """Return the values on each output of a node, or none if it did not run."""
        return self._values.get(node_id, [])

    def _outputs_of(self, node_id: str) -> list[list[Any]]:
        """Return the lists of values on each output of a node, which runs on the first request."""
        if node_id not in self._values:
            assert node_id not in self._open, f"a cycle at {node_id}"
            self._open.add(node_id)
            self._values[node_id] = self._run_node(node_id)
            self._open.remove(node_id)
        return self._values[node_id]

    def _run_node(self, node_id: str) -> list[list[Any]]:
        node = self.prompt[node_id]
        kind, inputs = node["class_type"], node["inputs"]
        if kind == INPUT_NODE:
            return [list(self.ports[inputs["name"]])]
        if kind == OUTPUT_NODE:
            values = self._outputs_of(inputs["value"][0])[inputs["value"][1]]
            if BLOCKED not in values:
                self.given[inputs["name"]] = values
            return []
        if kind == PLACED_NODE:
            return self._run_placed(node_id, inputs)
        return self._run_plain(node_id, self.schemas[kind], inputs)

    # -- a node as every other ------------------------------------------------------------------------------------

    def _run_plain(self, node_id: str, schema: NodeSchema, inputs: Mapping[str, Any]) -> list[list[Any]]:
        wanted = {name for name, value in inputs.items() if is_link(value) and not self._is_lazy(schema, name)}
        while True:
            given = self._given(node_id, schema, inputs, wanted)
            fresh = self._asks(schema, inputs, given) - wanted
            if not fresh:
                break
            wanted |= fresh
        return self._called(node_id, schema, given)

    @staticmethod
    def _is_lazy(schema: NodeSchema, name: str) -> bool:
        socket = schema.input(name)
        return socket is not None and socket.lazy

    def _given(self, node_id: str, schema: NodeSchema, inputs: Mapping[str, Any], wanted: set[str]) -> dict[str, list[Any]]:
        given: dict[str, list[Any]] = {}
        for name in sorted(inputs):
            value = inputs[name]
            if not is_link(value):
                given[name] = [value]
            elif (socket := schema.input(name)) is not None and socket.raw:
                self._outputs_of(value[0])
                given[name] = [self._behind(value[0], node_id)]
            elif name in wanted:
                given[name] = self._outputs_of(value[0])[value[1]]
            else:
                given[name] = [None]
        return given

    def _behind(self, first: str, last: str) -> str:
        """Return the nodes on the paths from ``first`` to ``last`` with their inputs, as a loop sees them."""
        leads: dict[str, bool] = {first: True}

        def reaches(node_id: str) -> bool:
            if node_id not in leads:
                sources = [value[0] for value in self.prompt[node_id]["inputs"].values() if is_link(value)]
                leads[node_id] = True in [reaches(source) for source in sources]
            return leads[node_id]

        reaches(last)
        body = [
            (
                node_id,
                self.prompt[node_id]["class_type"],
                sorted((k, v) for k, v in self.prompt[node_id]["inputs"].items() if not is_link(v)),
            )
            for node_id in sorted(leads)
            if leads[node_id]
        ]
        return short_hash(body)

    def _asks(self, schema: NodeSchema, inputs: Mapping[str, Any], given: Mapping[str, list[Any]]) -> set[str]:
        ask = self.asked.get(schema.class_type)
        if ask is None:
            return set()
        found: set[str] = set()
        for values in self._slices(schema, given):
            if BLOCKED not in values.values():
                found |= {name for name in ask(values) if is_link(inputs.get(name))}
        return found

    @staticmethod
    def _slices(schema: NodeSchema, given: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
        if schema.input_is_list:
            return [{name: BLOCKED if BLOCKED in values else values for name, values in given.items()}]
        count = max((len(values) for values in given.values()), default=1)
        return [{name: values[min(index, len(values) - 1)] for name, values in given.items()} for index in range(count)]

    def _called(self, node_id: str, schema: NodeSchema, given: Mapping[str, list[Any]]) -> list[list[Any]]:
        rows: list[tuple[Any, ...]] = []
        for values in self._slices(schema, given):
            if BLOCKED in values.values():
                rows.append((BLOCKED,) * len(schema.outputs))
                continue
            self.calls[node_id] = 1
            if schema.is_output_node:
                self.results.setdefault(node_id, []).append(values)
            rows.append(self.functions[schema.class_type](**values))
        outputs: list[list[Any]] = []
        for slot in range(len(schema.outputs)):
            column = [row[slot] for row in rows]
            if schema.is_list_output(slot):
                outputs.append([each for value in column for each in ([value] if value is BLOCKED else value)])
            else:
                outputs.append(column)
        return outputs

    # -- a placed node --------------------------------------------------------------------------------------------

    def _run_placed(self, node_id: str, inputs: Mapping[str, Any]) -> list[list[Any]]:
        plan = json.loads(inputs["plan"])
        count = len(plan["inputs"])
        assert set(inputs) == {"part", "plan", *(f"ports.p{index}" for index in range(count))}
        ports: dict[str, list[Any]] = {}
        for index, port in enumerate(plan["inputs"]):
            source, slot = inputs[f"ports.p{index}"]
            ports[port["name"]] = self._outputs_of(source)[slot]
        if any(BLOCKED in values for values in ports.values()):
            self.blocked_calls.add(node_id)
            return [[BLOCKED] for _ in plan["outputs"]]
        self._check(ports)
        inner = Interpreter(plan["prompt"], self.schemas, self.functions, self.asked, self.stuck, ports).run()
        self._check(inner.given)
        self.calls.update(inner.calls)
        assert not inner.results, "an output node ran elsewhere"
        return [inner.given.get(port["name"], [BLOCKED]) for port in plan["outputs"]]

    def _check(self, ports: Mapping[str, list[Any]]) -> None:
        for name, values in ports.items():
            if any(self.stuck(value) for value in values):
                raise Stuck(name)
