"""ComfyUI's node classes: their definitions, the classes of values on links, and the execution of one node outside any prompt."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.server_ext.comfy.compat.server import prompt_server

__all__ = [
    "add_class_with_types",
    "call_node",
    "execution_blocker",
    "find_class",
    "is_blocker",
    "loop_role",
    "may_rerun",
    "node_classes",
    "object_info_entry",
    "validates_itself",
    "validates_types",
]

_PATH = "/object_info/{node_class}"


def node_classes() -> Mapping[str, Any]:
    """Return the node classes by the name that prompts use."""
    found: Mapping[str, Any] = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
    return found


def add_class_with_types(name: str, class_type: str, types: Sequence[str]) -> None:
    """Add a class as ``class_type`` to ComfyUI's under ``name``; its first outputs have these types."""
    base = node_classes()[class_type]
    returned = [*types, *base.RETURN_TYPES[len(types) :]][: len(base.RETURN_TYPES)]
    typed = type(f"{base.__name__}WithTypes", (base,), {"RETURN_TYPES": returned})
    importlib.import_module("nodes").NODE_CLASS_MAPPINGS[name] = typed


async def object_info_entry(name: str) -> dict[str, Any]:
    """Return ``{name: definition}`` of a node class as ComfyUI's ``/object_info`` returns it, empty for an unknown class.

    Call it on ComfyUI's main loop.

    Raises:
        InvalidArgument: this ComfyUI has no such route. Any exception of the node class.
    """
    handler = next((route.handler for route in prompt_server().routes if getattr(route, "path", None) == _PATH), None)
    if handler is None:
        raise InvalidArgument(f"This ComfyUI has no route {_PATH!r}, so its node classes cannot be read. Update ComfyUI.")
    # only the handler of this route builds an entry; of the request it reads the name alone
    found: dict[str, Any] = json.loads((await handler(SimpleNamespace(match_info={"node_class": name}))).text)
    return found


def may_rerun(node_class: Any) -> bool:
    """Return whether ComfyUI may execute a node of this class again although its inputs are unchanged."""
    internal = importlib.import_module("comfy_api.internal")
    if getattr(node_class, "NOT_IDEMPOTENT", False) or hasattr(node_class, "IS_CHANGED"):
        return True
    has_schema = issubclass(node_class, internal._ComfyNodeInternal)
    return has_schema and internal.first_real_override(node_class, "fingerprint_inputs") is not None


def loop_role(node_class: Any) -> str | None:
    """Return ``start`` or ``end`` for a class that begins or ends a loop of ComfyUI's own kind. Its ``/object_info`` does not contain it."""
    internal = importlib.import_module("comfy_api.internal")
    if not issubclass(node_class, internal._ComfyNodeInternal):
        return None
    role = getattr(node_class.GET_SCHEMA(), "loop_boundary", None)
    return role if role in ("start", "end") else None


def validates_itself(class_type: str, name: str) -> bool:
    """Return whether a class of this ComfyUI validates an input itself, so that ComfyUI does not compare it with the options.

    Classes that this ComfyUI does not have count as such.
    """
    node_class = node_classes().get(class_type)
    if node_class is None:
        return True
    arguments, takes_all = _validated_by(node_class)
    return name in arguments or takes_all


def validates_types(class_type: str) -> bool:
    """Return whether a class of this ComfyUI validates the types of its links itself."""
    node_class = node_classes().get(class_type)
    return node_class is not None and "input_types" in _validated_by(node_class)[0]


def _validated_by(node_class: Any) -> tuple[list[str], bool]:
    """Return the arguments of a class's own validation, and whether it takes all inputs."""
    internal = importlib.import_module("comfy_api.internal")
    if issubclass(node_class, internal._ComfyNodeInternal):
        validate = internal.first_real_override(node_class, "validate_inputs")
    else:
        validate = getattr(node_class, "VALIDATE_INPUTS", None)
    if validate is None:
        return [], False
    found = inspect.getfullargspec(validate)
    return found.args, found.varkw is not None


def find_class(location: str) -> type | None:
    """Return the class at ``module:attributes`` in this ComfyUI, or None if this version has no such class."""
    module, _, path = location.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ModuleNotFoundError, AttributeError):
        return None
    return found if isinstance(found, type) else None


def execution_blocker(message: str | None = None) -> Any:
    """Return a value that blocks the nodes which receive it. With a message, ComfyUI reports an error on them."""
    return importlib.import_module("comfy_execution.graph_utils").ExecutionBlocker(message)


def is_blocker(value: Any) -> bool:
    """Return whether ``value`` blocks the nodes which receive it."""
    return isinstance(value, importlib.import_module("comfy_execution.graph_utils").ExecutionBlocker)


def call_node(class_type: str, inputs: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the outputs of a synchronous V3 node, executed outside any prompt.

    ``inputs`` are its inputs as a prompt has them, ``values`` the same with links replaced by values.
    """
    forms = importlib.import_module("comfy_api.latest._io")
    cls = node_classes()[class_type]
    known, _, dynamic = forms.get_finalized_class_inputs(cls.INPUT_TYPES(), dict(inputs))
    names = {*known.get("required", ()), *known.get("optional", ())}
    nested = forms.build_nested_inputs({name: value for name, value in values.items() if name in names}, dynamic)
    outputs: tuple[Any, ...] = cls.execute(**nested).args
    return outputs
