"""Schemas of ComfyUI's node classes, read from ``/object_info``; no class is imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from yggdrasill.errors import InvalidConfig

__all__ = ["MATCH_TYPE", "InputSchema", "NodeSchema", "NodeSchemas"]

MATCH_TYPE = "COMFY_MATCHTYPE_V3"
_AUTOGROW = "COMFY_AUTOGROW_V3"
_DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
_CREDENTIALS = frozenset({"AUTH_TOKEN_COMFY_ORG", "API_KEY_COMFY_ORG"})
_MAX_DEPTH = 8
_CORE_LOOPS = {"StartLoop": "start", "EndLoop": "end"}
"""ComfyUI's own classes, for answers without loops: those of a ComfyUI without the extension, or with an older one."""

Need = Literal["required", "optional"]


@dataclass(frozen=True)
class InputSchema:
    """One socket: its ``type`` as ComfyUI spells it, and the properties of a link to it.

    ``lazy``: its value is computed only on request; ``upload``: it names a file that the editor uploads to this server;
    ``raw``: the node receives the link itself; ``match``: the template whose other sockets have the same type.
    """

    type: str
    need: Need = "required"
    lazy: bool = False
    upload: bool = False
    raw: bool = False
    match: str | None = None


@dataclass(frozen=True)
class NodeSchema:
    """A node class. Sockets that appear on use are in ``inputs`` under their full names, or in ``grown`` by prefix.

    ``asks_again``: equal inputs need not give equal outputs, so its outputs are never taken from a cache without asking the class.
    ``may_block``: it may return an ``ExecutionBlocker`` instead of a value. ``needs_credentials``: it calls a service with the
    user's account. ``output_match``: per output, the template of the sockets that have its type. ``hidden``: the kinds of its hidden
    inputs, such as ``PROMPT``. ``repeats_output``: ComfyUI shows its output again when it is in the cache. ``loop``: nodes of the class
    begin (``start``) or end (``end``) a loop of ComfyUI's own kind.
    """

    class_type: str
    inputs: Mapping[str, InputSchema] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    output_is_list: tuple[bool, ...] = ()
    output_match: tuple[str | None, ...] = ()
    input_is_list: bool = False
    is_output_node: bool = False
    asks_again: bool = False
    may_block: bool = False
    needs_credentials: bool = False
    hidden: frozenset[str] = frozenset()
    repeats_output: bool = False
    loop: str | None = None
    grown: Mapping[str, InputSchema] = field(default_factory=dict)

    def input(self, name: str) -> InputSchema | None:
        """Return the socket with that name, or None if the class declares none."""
        found = self.inputs.get(name)
        if found is None and self.grown:
            found = next((schema for prefix, schema in self.grown.items() if name.startswith(prefix)), None)
        return found

    def output_type(self, index: int) -> str:
        """Return the declared type of an output, or ``*`` if it is not declared."""
        return self.outputs[index] if 0 <= index < len(self.outputs) else "*"

    def is_list_output(self, index: int) -> bool:
        """Return whether an output is declared as a list of values."""
        return 0 <= index < len(self.output_is_list) and self.output_is_list[index]

    @property
    def uploads(self) -> bool:
        """Return whether a socket names a file that the editor uploads to this server."""
        return any(schema.upload for schema in self.inputs.values())


class NodeSchemas(Mapping[str, NodeSchema]):
    """Schemas by class name. ``a | b`` merges two; ``b`` has precedence, as with dicts."""

    def __init__(self, schemas: Mapping[str, NodeSchema] | Iterable[NodeSchema] = ()) -> None:
        pairs = schemas.items() if isinstance(schemas, Mapping) else ((schema.class_type, schema) for schema in schemas)
        self._schemas: dict[str, NodeSchema] = dict(pairs)

    @classmethod
    def from_object_info(
        cls,
        info: Mapping[str, Any],
        *,
        asks_again: Iterable[str] = (),
        may_block: Iterable[str] = (),
        loops: Mapping[str, str] | None = None,
    ) -> NodeSchemas:
        """Read the response of ``GET /object_info``.

        ``asks_again`` and ``may_block`` name the classes with these properties, and ``loops`` maps classes to ``start`` or ``end``; the
        response does not contain them.

        Raises:
            InvalidConfig: a malformed entry; the message names its class.
        """
        again, blocks, ends = frozenset(asks_again), frozenset(may_block), loops or {}
        return cls([_schema(name, entry, name in again, name in blocks, ends.get(name)) for name, entry in info.items()])

    def __getitem__(self, class_type: str) -> NodeSchema:
        return self._schemas[class_type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._schemas)

    def __len__(self) -> int:
        return len(self._schemas)

    def __or__(self, other: Mapping[str, NodeSchema]) -> NodeSchemas:
        return NodeSchemas({**self._schemas, **other})


def _schema(name: str, entry: Any, asks_again: bool, may_block: bool, loop: str | None) -> NodeSchema:
    try:
        sockets = entry["input"]
        outputs = tuple(_type_of(kind) for kind in entry["output"])
        inputs: dict[str, InputSchema] = {}
        grown: dict[str, InputSchema] = {}
        _read_sockets(sockets, "", inputs, grown, 0)
        hidden = {str(spec[0] if isinstance(spec, (list, tuple)) else spec) for spec in (sockets.get("hidden") or {}).values()}
        return NodeSchema(
            class_type=name,
            inputs=inputs,
            outputs=outputs,
            output_is_list=tuple(bool(flag) for flag in entry.get("output_is_list") or ()),
            output_match=tuple(entry.get("output_matchtypes") or ()),
            input_is_list=bool(entry.get("is_input_list")),
            is_output_node=bool(entry.get("output_node")),
            asks_again=asks_again,
            may_block=may_block,
            needs_credentials=not _CREDENTIALS.isdisjoint(hidden),
            hidden=frozenset(hidden),
            repeats_output=bool(entry.get("has_intermediate_output")),
            loop=loop or (_CORE_LOOPS.get(name) if "EXECUTION_LIST" in hidden else None),
            grown=grown,
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InvalidConfig(f"Malformed entry of class {name!r} in /object_info: {error!r}") from None


def _read_sockets(
    sockets: Mapping[str, Any], prefix: str, inputs: dict[str, InputSchema], grown: dict[str, InputSchema], depth: int
) -> None:
    if depth > _MAX_DEPTH:
        raise TypeError("sockets are nested too deeply")
    needs: tuple[Need, Need] = ("required", "optional")
    for need in needs:
        for name, spec in (sockets.get(need) or {}).items():
            _read_socket(prefix + name, spec, need, inputs, grown, depth)


def _read_socket(name: str, spec: Any, need: Need, inputs: dict[str, InputSchema], grown: dict[str, InputSchema], depth: int) -> None:
    kind = _type_of(spec[0])
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    if kind == _AUTOGROW:
        template = options["template"]
        for group in template["input"].values():
            for inner in group.values():
                for grown_name in template.get("names") or ():
                    inputs[f"{name}.{grown_name}"] = _input(_type_of(inner[0]), inner, "optional")
                if "prefix" in template:
                    grown[f"{name}.{template['prefix']}"] = _input(_type_of(inner[0]), inner, "optional")
        return
    inputs[name] = _input(kind, spec, need)
    if kind == _DYNAMIC_COMBO:
        for option in options.get("options") or ():
            _read_sockets(option.get("inputs") or {}, name + ".", inputs, grown, depth + 1)


def _input(kind: str, spec: Any, need: Need) -> InputSchema:
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    template = options.get("template") if kind == MATCH_TYPE else None
    return InputSchema(
        type=kind,
        need=need,
        lazy=bool(options.get("lazy")),
        upload=kind == "WEBCAM" or any(value and str(key).endswith("_upload") for key, value in options.items()),
        raw=bool(options.get("rawLink")),
        match=template.get("template_id") if isinstance(template, Mapping) else None,
    )


def _type_of(kind: Any) -> str:
    """Return a type's name as a plain str, because node packs use str subclasses that equal everything. A list means a combo."""
    return ",".join(kind.split(",")) if isinstance(kind, str) else "COMBO"
