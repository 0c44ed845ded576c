"""Random API prompts over a small set of node classes with one class of each kind, and implementations of these classes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from samples.comfy_interpreter import BLOCKED, Interpreter, short_hash
from yggdrasill.remote.partition import NodeSchema, NodeSchemas, Part

__all__ = ["ASKED", "FUNCTIONS", "SCHEMAS", "Heavy", "RandomSource", "is_stuck", "random_parts", "random_prompt", "run_prompt"]


class RandomSource(Protocol):
    """A source of random choices: `random.Random`, or that of hypothesis."""

    def random(self) -> float: ...
    def randrange(self, stop: int, /) -> int: ...
    def choice(self, seq: Any, /) -> Any: ...


@dataclass(frozen=True)
class Heavy:
    """A value that is not transferable."""

    name: str


def _node(
    inputs: Mapping[str, Any],
    outputs: str = "",
    *,
    lists: tuple[bool, ...] = (),
    takes_lists: bool = False,
    output_node: bool = False,
    matches: list[str] | None = None,
    hidden: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return an entry in the form of /object_info."""
    kinds = outputs.split()
    sockets = {name: spec if isinstance(spec, list) else [spec, {}] for name, spec in inputs.items()}
    return {
        "input": {"required": {k: v for k, v in sockets.items() if not k.endswith("?")}, "hidden": dict(hidden or {})}
        | {"optional": {k[:-1]: v for k, v in sockets.items() if k.endswith("?")}},
        "output": kinds,
        "output_is_list": list(lists or [False] * len(kinds)),
        "output_matchtypes": matches,
        "is_input_list": takes_lists,
        "output_node": output_node,
    }


_MATCH: dict[str, Any] = {"template": {"template_id": "t", "allowed_types": "*"}}
_LAZY_MATCH = ["COMFY_MATCHTYPE_V3", {**_MATCH, "lazy": True}]
_GROWN = ["COMFY_AUTOGROW_V3", {"template": {"input": {"required": {"image": ["IMAGE", {}]}}, "prefix": "image", "min": 1, "max": 9}}]
_CHOICE = ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "a", "inputs": {"required": {"latent": ["LATENT", {}]}}}]}]

_INFO: dict[str, Any] = {
    "MakeImage": _node({"seed": "INT"}, "IMAGE"),
    "MakeLatent": _node({"seed": "INT"}, "LATENT"),
    "MakeNumber": _node({"seed": "INT"}, "INT"),
    "LoadImage": _node({"image": [["a.png", "b.png"], {"image_upload": True}]}, "IMAGE MASK"),
    "LoadModel": _node({"name": "STRING"}, "MODEL VAE STRING"),
    "LoadControl": _node({"name": "STRING"}, "CONTROL_NET"),
    "PatchModel": _node({"model": "MODEL", "strength": "INT"}, "MODEL"),
    "Guide": _node({"model": "MODEL", "cond": "CONDITIONING"}, "GUIDER"),
    "Encode": _node({"text": "STRING", "size?": "INT"}, "CONDITIONING"),
    "Control": _node({"cond": "CONDITIONING", "net": "CONTROL_NET", "image?": "IMAGE"}, "CONDITIONING"),
    "Blend": _node({"a": "IMAGE", "b": "IMAGE"}, "IMAGE"),
    "Sharpen": _node({"image": "IMAGE", "by?": "INT"}, "IMAGE"),
    "Stack": _node({"images": _GROWN}, "IMAGE"),
    "Resize": _node({"how": _CHOICE, "image": "IMAGE"}, "IMAGE INT"),
    "Sample": _node({"model": "MODEL", "cond": "CONDITIONING", "latent": "LATENT"}, "LATENT"),
    "SampleGuided": _node({"guider": "GUIDER", "latent": "LATENT"}, "LATENT LATENT"),
    "Decode": _node({"vae": "VAE", "latent": "LATENT"}, "IMAGE"),
    "Measure": _node({"image": "IMAGE"}, "INT BOOLEAN"),
    "Split": _node({"image": "IMAGE"}, "IMAGE", lists=(True,)),
    "Join": _node({"image": "IMAGE"}, "IMAGE", takes_lists=True),
    "Reverse": _node({"image": "IMAGE"}, "IMAGE", takes_lists=True, lists=(True,)),
    "Gate": _node({"image": "IMAGE", "open": "INT"}, "IMAGE IMAGE"),
    "Fork": _node({"latent": "LATENT", "open": "INT"}, "LATENT LATENT"),
    "Switch": _node({"on": "INT", "yes": _LAZY_MATCH, "no": _LAZY_MATCH}, "COMFY_MATCHTYPE_V3", matches=["t"]),
    "LazyImage": _node({"on": "INT", "image": ["IMAGE", {"lazy": True}]}, "IMAGE"),
    "Reroute": _node({"any": "*"}, "*"),
    "LoopStart": _node({"image": "IMAGE"}, "FLOW_CONTROL IMAGE"),
    "LoopEnd": _node({"flow": ["FLOW_CONTROL", {"rawLink": True}], "image": "IMAGE"}, "IMAGE"),
    "SaveImage": _node({"images": "IMAGE", "filename_prefix": "STRING"}, "IMAGE", output_node=True),
    "PreviewImage": _node({"images": "IMAGE"}, "IMAGE", output_node=True),
    "SaveLatent": _node({"samples": "LATENT"}, "LATENT", output_node=True),
    "StampAndSave": _node({"images": "IMAGE"}, "IMAGE", output_node=True),
    "SaveModel": _node({"model": "MODEL"}, "MODEL", output_node=True),
    "Show": _node({"source": "*"}, "", output_node=True),
    "CallService": _node({"image": "IMAGE"}, "IMAGE", hidden={"key": ["API_KEY_COMFY_ORG"]}),
}
SCHEMAS = NodeSchemas.from_object_info(_INFO, asks_again=["Measure"], may_block=["Gate", "Fork"])
#: What the travelling and the other types are, for drawing: which outputs an input may be linked to.
_HEAVY = {"MODEL", "VAE", "CONTROL_NET", "GUIDER", "FLOW_CONTROL"}
_SINKS = ("SaveImage", "PreviewImage", "SaveLatent", "StampAndSave", "SaveModel", "Show")


def is_stuck(value: Any) -> bool:
    """Return whether a value is not transferable, or contains such a value."""
    if isinstance(value, Heavy):
        return True
    return isinstance(value, (list, tuple)) and any(is_stuck(each) for each in value)


def _number(*parts: Any) -> int:
    return int(short_hash(*parts), 16)


def _made(schema: NodeSchema, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the default outputs of a class: the hash of its inputs in the form of each output's type."""
    found: list[Any] = []
    for slot, kind in enumerate(schema.outputs):
        name = short_hash(schema.class_type, slot, values)
        if kind in _HEAVY:
            found.append(Heavy(name))
        elif kind == "CONDITIONING":
            found.append((name, *(value for value in _flat(values.values()) if isinstance(value, Heavy) and "CONTROL" in value.name)))
        elif schema.is_list_output(slot):
            found.append([short_hash(name, index) for index in range(1 + _number(name) % 3)])
        else:
            found.append(name)
    return tuple(found)


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _gate(schema: NodeSchema, values: Mapping[str, Any]) -> tuple[Any, ...]:
    made = _made(schema, values)
    return tuple(BLOCKED if _number("gate", name) % 3 == 0 else name for name in made)


def _function(class_type: str) -> Callable[..., tuple[Any, ...]]:
    schema = SCHEMAS[class_type]
    if class_type in ("SaveImage", "PreviewImage"):
        return lambda **values: (values["images"],)
    if class_type == "SaveLatent":
        return lambda **values: (values["samples"],)
    if class_type == "Reroute":
        return lambda **values: (values["any"],)
    if class_type == "Switch":
        return lambda **values: (values["yes" if _is_on(values) else "no"],)
    if class_type == "LoadControl":
        return lambda **values: (Heavy("CONTROL " + short_hash(values)),)
    if class_type in ("Gate", "Fork"):
        return lambda **values: _gate(schema, values)
    return lambda **values: _made(schema, values)


def _is_on(values: Mapping[str, Any]) -> bool:
    return _number("on", values["on"]) % 2 == 0


FUNCTIONS = {class_type: _function(class_type) for class_type in SCHEMAS}
ASKED: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "Switch": lambda values: ["yes" if _is_on(values) else "no"],
    "LazyImage": lambda values: ["image"] if _is_on(values) else [],
}


def run_prompt(prompt: Mapping[str, Any], targets: set[str] | None = None) -> Interpreter:
    """Run a prompt over these classes."""
    return Interpreter(prompt, SCHEMAS, FUNCTIONS, ASKED, is_stuck).run(targets)


# -- drawing ------------------------------------------------------------------------------------------------------------


def random_prompt(dice: RandomSource, size: int, without: Collection[str] = ()) -> dict[str, Any]:
    """Return a prompt of about ``size`` nodes, linked to earlier ones where types fit, with output nodes at unused outputs."""
    prompt: dict[str, Any] = {}
    types: dict[tuple[str, int], str] = {}
    classes = [name for name in SCHEMAS if name not in _SINKS and name not in without]
    sinks = [name for name in _SINKS if name not in without]
    while len(prompt) < size:
        class_type = dice.choice(sinks) if dice.random() < 0.15 else dice.choice(classes)
        _add(prompt, types, class_type, dice)
    used = {value[0] for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)}
    for node_id in list(prompt):
        if node_id not in used and prompt[node_id]["class_type"] not in _SINKS and dice.random() < 0.8:
            new = _fresh_id(prompt, dice)
            prompt[new] = {"class_type": "Show", "inputs": {"source": [node_id, 0]}}
    return prompt


def _add(prompt: dict[str, Any], types: dict[tuple[str, int], str], class_type: str, dice: RandomSource) -> None:
    schema = SCHEMAS[class_type]
    names = [name for name, socket in schema.inputs.items() if socket.type != "COMFY_DYNAMICCOMBO_V3"]
    names += [f"{prefix}{index}" for prefix in schema.grown for index in range(1 + dice.randrange(3))]
    inputs: dict[str, Any] = {"how": "a"} if class_type == "Resize" else {}
    match: str | None = None
    for name in names:
        socket = schema.input(name)
        assert socket is not None
        fits = [source for source, kind in types.items() if _fits(kind, socket.type, match)]
        constant = socket.type in ("INT", "STRING", "COMBO", "BOOLEAN")
        if socket.need == "optional" and dice.random() < 0.5:
            continue
        if fits and not (constant and dice.random() < 0.6):
            recent = fits[-6:] if dice.random() < 0.7 else fits
            source = dice.choice(recent)
            inputs[name] = [source[0], source[1]]
            if socket.match:
                match = types[source]
        elif constant or socket.need == "optional":
            inputs[name] = dice.randrange(1000)
        else:
            return
    node_id = _fresh_id(prompt, dice)
    prompt[node_id] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": f"{class_type} {node_id}"}}
    for slot, kind in enumerate(schema.outputs):
        types[node_id, slot] = kind
        if kind in ("*", "COMFY_MATCHTYPE_V3"):
            source = inputs["any" if "any" in inputs else "yes"]
            types[node_id, slot] = types[source[0], source[1]]


def _fits(kind: str, wanted: str, match: str | None) -> bool:
    if wanted == "COMFY_MATCHTYPE_V3":
        return kind == match if match is not None else kind != "FLOW_CONTROL"
    return kind == wanted or (wanted == "*" and kind != "FLOW_CONTROL")


def _fresh_id(prompt: Mapping[str, Any], dice: RandomSource) -> str:
    while True:
        node_id = str(1 + dice.randrange(60)) if dice.random() < 0.7 else f"{dice.randrange(4)}:{dice.randrange(60)}"
        if node_id not in prompt:
            return node_id


def random_parts(prompt: Mapping[str, Any], dice: RandomSource, most: int = 3) -> list[Part]:
    """Return one to ``most`` parts that do not overlap."""
    count = 1 + dice.randrange(most)
    density = dice.choice([0.3, 0.6, 0.9])
    chosen: list[set[str]] = [set() for _ in range(count)]
    for node_id in prompt:
        if dice.random() < density:
            chosen[dice.randrange(count)].add(node_id)
    return [Part(f"part {index}", frozenset(nodes), None if index else "77") for index, nodes in enumerate(chosen) if nodes]
