"""The model files that a prompt names, in values and in the words of a text, and the same files in another ComfyUI's folders of models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from yggdrasill.remote.comfy_ports import HIDDEN_NODE
from yggdrasill.remote.partition.traits import texts_of

__all__ = [
    "ModelFolders",
    "NamedFile",
    "embedding_words",
    "files_of",
    "folders_of_list",
    "has_model",
    "is_model_file",
    "is_plain_path",
    "model_options",
    "model_sources",
    "same_path",
    "spelled_at",
]

ModelFolders = Mapping[str, Sequence[str]]
"""The names of model files by kind of folder, such as ``checkpoints``."""

_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx")
_EMBEDDING_SUFFIXES = (".safetensors", ".pt", ".bin")
"""What ComfyUI appends to the name of an embedding, in this order."""
_RENAMED = {"unet": "diffusion_models", "clip": "text_encoders"}
"""Kinds of folders by their former names."""
_SHARED_KINDS = frozenset(
    {"checkpoints", "loras", "vae", "text_encoders", "diffusion_models", "clip_vision", "style_models", "embeddings", "controlnet",
     "upscale_models", "hypernetworks"}
)  # fmt: skip
"""Kinds of folders that every ComfyUI has. An endpoint without such a kind has no files in it."""
_LORA = re.compile(r"<lora:([^:<>]+)[:>]")
_EMBEDDING = re.compile(r"(?:^|(?<=\s))embedding:")
_END_OF_NAME = re.compile(r"[\s<\[]")
_MAX_DEPTH = 100
_NAME_PART = re.compile(r"[^\\/:*?\"<>|\x00-\x1f]+")
_MAX_NAME_LENGTH = 250
_DEVICES = frozenset({"CON", "PRN", "AUX", "NUL", *(f"{kind}{number}" for kind in ("COM", "LPT") for number in range(1, 10))})
"""Names that Windows reserves, with any suffix."""


def is_plain_path(name: str) -> bool:
    """Return whether a relative path with ``/`` stays inside its folder and is a valid file name on every system; hidden names are not."""
    parts = name.split("/")
    return len(name) <= _MAX_NAME_LENGTH and all(
        _NAME_PART.fullmatch(part) is not None
        and not part.startswith(".")
        and not part.endswith((".", " "))
        and part.partition(".")[0].upper() not in _DEVICES
        for part in parts
    )


def is_model_file(name: str) -> bool:
    """Return whether a text is named like a file of weights."""
    return name.lower().endswith(_SUFFIXES)


def same_path(name: str) -> str:
    """Return one spelling for a path written with ``\\`` or ``/``."""
    return name.replace("\\", "/")


class NamedFile(NamedTuple):
    """A model file that a node names. ``name`` is as in the prompt or, for a word in a text, as this ComfyUI spells it.

    ``folders`` are the kinds of folders in which this ComfyUI has it, empty if this process is not a ComfyUI. ``input`` is the node's input,
    and ``find`` returns the file that another ComfyUI loads for it from the names in a folder, or None.
    """

    node_id: str
    input: str
    name: str
    folders: tuple[str, ...]
    find: Callable[[Sequence[str]], str | None]


def files_of(prompt: Mapping[str, Any], local: ModelFolders | None) -> Iterator[NamedFile]:
    """Yield the model files that nodes name in constants. A name in a file prefix does not count.

    ``local`` are the model files of the ComfyUI of this process; names that are not among them do not count, because ComfyUI would not load
    such a file locally. If this process is not a ComfyUI, each name of a model file at a loader counts.
    """
    kinds: dict[str, list[str]] = {}
    for kind, names in (local or {}).items():
        for name in names:
            kinds.setdefault(same_path(name), []).append(kind)
    for node_id, node in prompt.items():
        if node["class_type"] == HIDDEN_NODE or (local is None and "Load" not in node["class_type"]):
            continue
        for key, value in node["inputs"].items():
            for text in texts_of(value) if "prefix" not in key else ():
                folders = tuple(kinds.get(same_path(text), ()))
                if is_model_file(text) and (local is None or folders):
                    yield NamedFile(node_id, key, text, folders, _finder(text))
                elif local is not None and ":" in text:
                    yield from _files_in_words(node_id, key, text, local)


def spelled_at(file: NamedFile, models: ModelFolders) -> str | None:
    """Return a named file as another ComfyUI with these model files spells it, or None if that one would not find it."""
    wanted = {_RENAMED.get(kind, kind) for kind in file.folders}
    there = {kind: names for kind, names in models.items() if not wanted or _RENAMED.get(kind, kind) in wanted}
    if not there and wanted.isdisjoint(_SHARED_KINDS):
        there = dict(models)  # a kind of a node pack, which another version may call otherwise
    return next((found for names in there.values() if (found := file.find(names)) is not None), None)


def has_model(models: ModelFolders, name: str, kind: str | None) -> bool:
    """Return whether a ComfyUI has a model file in a kind of folder, or in any if ``kind`` is None."""
    folders = (names for other, names in models.items() if kind is None or _RENAMED.get(other, other) == _RENAMED.get(kind, kind))
    return same_path(name) in {same_path(file) for names in folders for file in names}


def embedding_words(text: str) -> Iterator[str]:
    """Yield the names after ``embedding:``, as ComfyUI reads a prompt: at the start of a word, without the weight of parentheses around it."""
    if "embedding:" not in text:
        return
    for segment in _segments(text.replace("\\)", "\0\1").replace("\\(", "\0\2")):
        words = segment.replace("\0\1", ")").replace("\0\2", "(")
        for piece in _EMBEDDING.split(words)[1:]:
            name = _END_OF_NAME.split(piece, maxsplit=1)[0]
            if name:
                yield name


def _segments(text: str, depth: int = 0) -> Iterator[str]:
    """Yield the texts between parentheses, without the weights at their ends."""
    for item in _top_items(text):
        if len(item) < 2 or item[0] != "(" or item[-1] != ")" or depth == _MAX_DEPTH:
            yield item
            continue
        inner = item[1:-1]
        head, _, weight = inner.rpartition(":")
        yield from _segments(head if head and _is_number(weight) else inner, depth + 1)


def _top_items(text: str) -> Iterator[str]:
    """Yield the outermost parentheses with their contents, and the texts between them."""
    start, level = 0, 0
    for position, char in enumerate(text):
        if char == "(":
            if level == 0 and position > start:
                yield text[start:position]
                start = position
            level += 1
        elif char == ")":
            level -= 1
            if level == 0:
                yield text[start : position + 1]
                start = position + 1
    if start < len(text):
        yield text[start:]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _files_in_words(node_id: str, key: str, text: str, local: ModelFolders) -> Iterator[NamedFile]:
    words = [("embeddings", word, _embedding_finder(word)) for word in embedding_words(text)]
    words += [("loras", word.strip(), _stem_finder(word.strip())) for word in _LORA.findall(text)]
    for kind, _, find in words:
        file = find(local.get(kind, ()))
        if file is not None:
            yield NamedFile(node_id, key, file, (kind,), find)


def _finder(name: str) -> Callable[[Sequence[str]], str | None]:
    wanted = same_path(name)
    return lambda names: next((file for file in names if same_path(file) == wanted), None)


def _embedding_finder(word: str) -> Callable[[Sequence[str]], str | None]:
    """Return the search of ComfyUI, which looks into all subfolders of the folder of embeddings."""
    stems = dict.fromkeys(same_path(name) for name in (word, word.strip(",")) if name.strip(","))

    def find(names: Sequence[str]) -> str | None:
        for stem in stems:
            for wanted in (stem, *(stem + suffix for suffix in _EMBEDDING_SUFFIXES)):
                for file in names:
                    path = same_path(file)
                    if path == wanted or path.endswith("/" + wanted):
                        return file
        return None

    return find


def _stem_finder(word: str) -> Callable[[Sequence[str]], str | None]:
    """Return the search of node packs: a name may lack its folder and its suffix. A complete name has precedence."""
    wanted = same_path(word)

    def find(names: Sequence[str]) -> str | None:
        tests: tuple[Callable[[str], str], ...] = (
            lambda path: path,
            lambda path: path.rpartition(".")[0],
            lambda path: path.rpartition("/")[2],
            lambda path: path.rpartition("/")[2].rpartition(".")[0],
        )
        return next((file for test in tests for file in names if test(same_path(file)) == wanted), None)

    return find


def model_options(options: Iterable[Any]) -> set[str]:
    """Return the model files among the options of a list, in one spelling."""
    return {same_path(option) for option in options if isinstance(option, str) and is_model_file(option)}


def folders_of_list(options: Iterable[Any], models: ModelFolders) -> list[str]:
    """Return the kinds of folders that have all model files of a list, those with the fewest other files first."""
    wanted = model_options(options)
    kinds = {kind: {same_path(name) for name in names} for kind, names in models.items()}
    found = [kind for kind, names in kinds.items() if wanted and wanted <= names]
    return sorted(found, key=lambda kind: (len(kinds[kind]), kind))


def model_sources(workflow: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return what a workflow (in the editor's format) defines about models, by file name: ``folder``, ``url``, ``sha256``, each if known.

    Workflows define the sources of models in ``properties.models`` of the nodes that load them.
    """
    found: dict[str, dict[str, str]] = {}
    definitions = workflow.get("definitions")
    subgraphs = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    for graph in (workflow, *(subgraphs if isinstance(subgraphs, list) else [])):
        for node in graph.get("nodes") or () if isinstance(graph, Mapping) else ():
            properties = node.get("properties") if isinstance(node, Mapping) else None
            models = properties.get("models") if isinstance(properties, Mapping) else None
            for model in models if isinstance(models, list) else ():
                if isinstance(model, Mapping) and isinstance(model.get("name"), str):
                    hashed = model.get("hash") if str(model.get("hash_type", "")).upper() == "SHA256" else None
                    facts = {"folder": model.get("directory"), "url": model.get("url"), "sha256": hashed}
                    found[model["name"]] = {name: value for name, value in facts.items() if isinstance(value, str) and value}
    return found
