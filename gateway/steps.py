"""Composites: a workflow that is a graph of graphs. Its steps run on any endpoints, in topological order, and hand values over in wire form.

A composite is ``{"steps": {NAME: {"graph" or "prompt", "inputs": {PORT: VALUE or {"from": "NAME.PORT"}}, "options"}}, "outputs": {KEY: "NAME.PORT"}}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from yggdrasill.errors import CorruptData, CycleFound, InvalidConfig, MissingInput, unknown_name

__all__ = ["check_composite", "compose", "join_wires", "needed_steps", "part_of_wire", "wire_of_step"]

_REFERENCES = frozenset({"$tensor", "$array", "$bytes", "$bytearray"})
_MAX_STEPS = 1000
_LONGEST_NAME = 200
_FORM = "A composite is {'steps': {NAME: {'graph': ID, 'inputs': {PORT: VALUE or {'from': 'NAME.PORT'}}}}, 'outputs': {KEY: 'NAME.PORT'}}."


def check_composite(document: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return for each step, in topological order, the names of the steps that it needs.

    Raises:
        InvalidConfig: not a composite. UnknownName: a reference to a step that does not exist. CycleFound
    """
    steps, outputs = document.get("steps"), document.get("outputs", {})
    if not isinstance(steps, Mapping) or not steps or not isinstance(outputs, Mapping) or len(steps) > _MAX_STEPS:
        raise InvalidConfig(f"The composite must have 1 to {_MAX_STEPS} steps by name, and outputs by name. {_FORM}")
    for name, step in steps.items():
        runs = [key for key in ("graph", "prompt") if isinstance(step, Mapping) and step.get(key)]
        if len(runs) != 1 or not isinstance(step.get("inputs", {}), Mapping) or not _is_name(name):
            raise InvalidConfig(
                f"Step {str(name)[:80]!r} needs a name without '.', either 'graph' or 'prompt', and inputs by port. {_FORM}"
            )
    found = {str(name): needed_steps(step) for name, step in steps.items()}
    for name, needed in found.items():
        for other in needed:
            if other not in found:
                raise unknown_name("step", other, found, f"It is named by step {name!r}.")
    for key, reference in outputs.items():
        step, _ = _split(reference, f"output {str(key)[:80]!r}")
        if step not in found:
            raise unknown_name("step", step, found, f"It is named by output {str(key)[:80]!r}.")
    return _in_order(found)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME and name.isprintable() and "." not in name


def needed_steps(step: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the steps whose outputs a step uses, each once."""
    sources = (_source(value) for value in step.get("inputs", {}).values())
    return tuple(dict.fromkeys(_split(source, "an input")[0] for source in sources if source is not None))


def _source(value: Any) -> str | None:
    """Return the reference in an input, or None for a value."""
    return value["from"] if isinstance(value, Mapping) and set(value) == {"from"} and isinstance(value["from"], str) else None


def _split(reference: Any, where: str) -> tuple[str, str]:
    step, dot, port = reference.partition(".") if isinstance(reference, str) else ("", "", "")
    if not step or not dot or not port:
        raise InvalidConfig(f"The reference of {where} must be 'STEP.PORT', got {str(reference)[:80]!r}. {_FORM}")
    return step, port


def _in_order(needed: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    left, order = dict(needed), {}
    while left:
        ready = [name for name, others in left.items() if all(other in order for other in others)]
        if not ready:
            raise CycleFound(f"The steps {', '.join(map(repr, sorted(left)))} need each other in a cycle. Remove one of the references.")
        for name in ready:
            order[name] = left.pop(name)
    return order


# -- values -----------------------------------------------------------------------------------------------------------


def part_of_wire(wire: Mapping[str, Any], port: str, where: str) -> dict[str, Any]:
    """Return the value of one port of a dict in wire form, itself in wire form.

    Raises:
        MissingInput: the step has no port of this name.
    """
    skeleton = wire.get("skeleton")
    key = f"${port}" if port.startswith("$") else port
    if not isinstance(skeleton, Mapping) or key not in skeleton:
        ports = ", ".join(map(repr, skeleton)) if isinstance(skeleton, Mapping) else "none"
        raise MissingInput(f"{where} has no output {port!r}. Available: {ports}.", ports=[port])
    return join_wires({"": {"skeleton": skeleton[key], "payloads": wire.get("payloads", [])}}, single=True)


def join_wires(parts: Mapping[str, Mapping[str, Any]], *, single: bool = False) -> dict[str, Any]:
    """Return a dict of values in wire form from values in wire form; with ``single`` the only value itself. Unused payloads are left out."""
    payloads: list[Any] = []
    skeletons: dict[str, Any] = {}
    for name, wire in parts.items():
        places: dict[int, int] = {}
        known = wire.get("payloads") or []

        def place(index: int, known: list[Any] = known, places: dict[int, int] = places) -> int:
            if not 0 <= index < len(known):
                raise CorruptData(f"A value refers to payload {index} of {len(known)}: it was truncated or changed.")
            if index not in places:
                places[index] = len(payloads)
                payloads.append(known[index])
            return places[index]

        skeletons[f"${name}" if name.startswith("$") else name] = _renumbered(wire.get("skeleton"), place)
    return {"skeleton": skeletons[next(iter(skeletons))] if single else skeletons, "payloads": payloads}


def _renumbered(root: Any, place: Callable[[int], int]) -> Any:
    """Return a copy of a skeleton whose references to payloads are those of ``place``. A skeleton may be too deep for recursion."""
    found: list[Any] = [root]
    left: list[tuple[Any, Any]] = [(found, 0)]
    while left:
        container, key = left.pop()
        node = container[key]
        tag = next(iter(node)) if isinstance(node, dict) and len(node) == 1 else None
        if tag in _REFERENCES and isinstance(node[tag], int) and not isinstance(node[tag], bool):
            container[key] = {tag: place(node[tag])}
        elif isinstance(node, dict):
            container[key] = copied = dict(node)
            left += [(copied, name) for name, item in copied.items() if isinstance(item, (dict, list))]
        elif isinstance(node, list):
            container[key] = items = list(node)
            left += [(items, index) for index, item in enumerate(items) if isinstance(item, (dict, list))]
    return found[0]


def wire_of_step(
    inputs: Mapping[str, Any], outputs: Mapping[str, Mapping[str, Any]], pack: Callable[[Any], Mapping[str, Any]]
) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
    """Return the inputs of a step in wire form, and the parts that come from other steps with the name of their endpoint.

    ``outputs`` are those of the needed steps, as `compose` receives them; ``pack(value)`` returns a plain value in wire form.
    """
    parts: dict[str, Mapping[str, Any]] = {}
    sources: list[tuple[str, dict[str, Any]]] = []
    for port, value in inputs.items():
        reference = _source(value)
        if reference is None:
            parts[port] = pack(value)
            continue
        step, source = _split(reference, f"input {port!r}")
        part = part_of_wire(outputs[step]["wire"], source, f"Step {step!r}")
        parts[port] = part
        sources.append((str(outputs[step].get("endpoint")), part))
    return join_wires(parts), iter(sources)


def compose(composite: Mapping[str, Any], outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the output of a composite: ``wire`` with its outputs by key, ``endpoints`` of the steps, and the ``files`` that steps saved.

    Without declared outputs, those of every step are there as ``STEP.PORT``.
    """
    wanted = dict(composite.get("outputs") or {})
    if not wanted:
        for step, output in outputs.items():
            skeleton = (output.get("wire") or {}).get("skeleton")
            ports = skeleton if isinstance(skeleton, Mapping) else {}
            wanted |= {f"{step}.{port.removeprefix('$')}": f"{step}.{port.removeprefix('$')}" for port in ports}
    parts = {}
    for key, reference in wanted.items():
        step, port = _split(reference, f"output {key!r}")
        parts[key] = part_of_wire(outputs[step].get("wire") or {}, port, f"Step {step!r}")
    files = [{**file, "step": step} for step, output in outputs.items() for file in output.get("files") or ()]
    origins = sorted({str(output.get("endpoint")) for output in outputs.values()})
    return {"wire": join_wires(parts) if parts else {"skeleton": {}, "payloads": []}, "files": files, "endpoints": origins}
