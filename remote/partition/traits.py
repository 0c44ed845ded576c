"""Facts about node classes that their definitions do not contain, and the nodes of a prompt that read the user's files.

The facts come from a table (`yggdrasill.remote.node_traits`), and whether a text names a file from the host, so that the partition stays pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.remote.comfy_ports import is_link
from yggdrasill.remote.partition.graph import PromptGraph
from yggdrasill.remote.partition.schemas import NodeSchema

__all__ = ["HostFacts", "NodeTraits", "is_place_input", "saves_files", "texts_of", "user_file_readers"]

_TEXT_TYPES = frozenset({"STRING", "COMBO", "*"})
_SAVER_INPUT = re.compile(r"(?i)filename|prefix|^(save|output)_?(path|dir|folder|to)")
_PLACE_INPUT = re.compile(r"(?i)path|dir|folder|file|video|audio|image|photo|picture|source|location|playlist")
_MOST_TEXTS = 64
_MAX_DEPTH = 8


@dataclass(frozen=True)
class NodeTraits:
    """Traits of one node class.

    ``stays``: the reason why its nodes run on the user's server. ``saves``: it writes files that belong to the user, although it is not an
    output node. ``reads_files``: it reads files of the user. ``keep_together``: nodes with the same word share state of a process, so they
    run in one call or all locally. ``with_outputs``: a loop that also runs the output nodes that are linked to its nodes.
    """

    stays: str | None = None
    saves: bool = False
    reads_files: bool = False
    keep_together: str | None = None
    with_outputs: bool = False


_NO_TRAITS = NodeTraits()


def _names_no_file(class_type: str, name: str, value: str) -> bool:
    return False


@dataclass(frozen=True)
class HostFacts:
    """What a partition needs to know about the server on which the user works.

    ``traits`` maps classes to their traits, ``types`` maps socket types of node packs to whether their values are transferable.
    ``names_user_file(class_type, input, text)`` returns whether a text at an input names an existing file or folder of the user.
    """

    traits: Mapping[str, NodeTraits] = field(default_factory=dict)
    types: Mapping[str, bool] = field(default_factory=dict)
    names_user_file: Callable[[str, str, str], bool] = _names_no_file

    def of(self, class_type: str) -> NodeTraits:
        """Return the traits of a class."""
        return self.traits.get(class_type, _NO_TRAITS)


def saves_files(schema: NodeSchema) -> bool:
    """Return whether a class writes files with the prompt in them, as savers do, although it is not an output node."""
    writes = {"PROMPT", "EXTRA_PNGINFO"} <= schema.hidden
    return writes and not schema.is_output_node and any(_SAVER_INPUT.search(name) for name in schema.inputs)


def is_place_input(name: str) -> bool:
    """Return whether an input is named as one for files or folders."""
    return _PLACE_INPUT.search(name) is not None


def texts_of(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield the texts in a constant, also those inside lists and dicts."""
    if isinstance(value, str):
        yield value
    elif depth < _MAX_DEPTH and isinstance(value, (Mapping, list)) and not is_link(value):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from texts_of(part, depth + 1)


def user_file_readers(graph: PromptGraph, host: HostFacts) -> dict[str, str]:
    """Map each node with a text that names a file or folder of the user to that text.

    A text may be a constant of the node, or come through links from nodes that only make text into an input for files.
    """
    found: dict[str, str] = {}
    carried: dict[str, tuple[str, ...]] = {}
    for node_id in graph.order:
        class_type = graph.class_of(node_id)
        constants = {name: tuple(texts_of(value)) for name, value in graph.prompt[node_id].get("inputs", {}).items() if not is_link(value)}
        linked = {link.input: carried.get(link.source, ()) for link in graph.links[node_id] if link.schema.type in _TEXT_TYPES}
        places = {name: texts for name, texts in linked.items() if is_place_input(name)}
        named = ((name, text) for texts in (constants, places) for name, listed in texts.items() for text in listed)
        text = next((text for name, text in named if text and host.names_user_file(class_type, name, text)), None)
        if text is not None:
            found[node_id] = text
        if _makes_only_text(graph.schema(node_id)):
            together = dict.fromkeys(text for texts in (constants, linked) for listed in texts.values() for text in listed)
            carried[node_id] = tuple(together)[:_MOST_TEXTS]
    return found


def _makes_only_text(schema: NodeSchema | None) -> bool:
    return schema is not None and bool(schema.outputs) and set(schema.outputs) <= _TEXT_TYPES
