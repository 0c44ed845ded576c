"""The version spec: a ``comfy-build/1`` document with the part ``x-yggdrasill``, as pydantic models.

Keys that this version does not know are kept, except below ``x-yggdrasill``, where they are errors. Python names are those of the keys in
snake case. The models are immutable; `pydantic.BaseModel.model_copy` makes changed copies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from yggdrasill.errors import MissingFile, format_options
from yggdrasill.foundation.config import read_document, read_model
from yggdrasill.remote.model_names import is_plain_path

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "COMMIT",
    "DEFINITION_SCHEMA",
    "MAX_ENTRIES",
    "MAX_REQUIREMENTS_BYTES",
    "SCHEMA",
    "SCHEMES",
    "CustomNode",
    "Definition",
    "InputTarget",
    "ModelFile",
    "VersionSpec",
    "YggdrasillPart",
    "spec_from_document",
]

SCHEMA = "comfy-build/1"
DEFINITION_SCHEMA = "distribution-definition/0"
MAX_ENTRIES = 512
"""Models, and custom nodes, of one spec."""
MAX_REQUIREMENTS_BYTES = 64 << 10
SCHEMES = ("https", "http", "s3", "gs", "az", "hf")
"""Schemes of the places that models are fetched from."""
COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x20\x7f]")


def _refuse(text: str) -> NoReturn:
    """Raise the error of a value, whose message is ``text`` without a prefix."""
    raise PydanticCustomError("version_spec", "{text}", {"text": text})


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _checked_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        wrong = _CONTROL.search(value) is not None or parts.scheme not in SCHEMES or not parts.hostname
    except ValueError:
        wrong = True
    if wrong:
        _refuse(f"a source is a url that begins with {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    if "@" in parts.netloc:
        _refuse("a source contains no user name or password; pass tokens in the environment")
    return value


Sha256 = Annotated[str, BeforeValidator(_lower), Field(pattern=f"^{_SHA256.pattern}$")]
Commit = Annotated[str, BeforeValidator(_lower), Field(pattern=f"^{COMMIT.pattern}$")]


class _Part(BaseModel):
    """A part of a spec that keeps unknown keys."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True, defer_build=True)


class ModelFile(_Part):
    """A model file: ``type`` is its folder below the folder of models, such as ``loras`` or ``ultralytics/bbox``.

    A file without ``sourceUri`` and ``blobId`` is local: it is on the machine where the spec was made.
    """

    type: str
    filename: str | None = None
    sha256: Sha256 | None = None
    size_bytes: int | None = Field(default=None, alias="sizeBytes", ge=0)
    source_uri: str | None = Field(default=None, alias="sourceUri")
    blob_id: str | None = Field(default=None, alias="blobId")
    source: str | None = None
    local_path: str | None = Field(default=None, alias="localPath")

    @field_validator("type")
    @classmethod
    def _check_type(cls, value: str) -> str:
        if not is_plain_path(value):
            _refuse("a model's type is a folder below models/, such as 'loras' or 'ultralytics/bbox'")
        if value.partition("/")[0].lower() in ("configs", "custom_nodes"):
            _refuse("models are not in configs/ or custom_nodes/, which ComfyUI reads as settings and code")
        return value

    @field_validator("source_uri")
    @classmethod
    def _check_source(cls, value: str | None) -> str | None:
        return None if value is None else _checked_url(value)

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.source_uri and self.blob_id:
            _refuse("a model has one of sourceUri and blobId, not both")
        if not self.name or "/" in self.name or not is_plain_path(self.name):
            _refuse(f"{self.name[:100]!r} is not a file name; set 'filename' to one without folders that every system accepts")
        return self

    @property
    def name(self) -> str:
        """Return the file name: ``filename``, else the last part of the source's path."""
        if self.filename is not None:
            return self.filename
        path = urlsplit(self.source_uri).path if self.source_uri else self.local_path or ""
        return PurePosixPath(unquote(path)).name

    @property
    def target(self) -> str:
        """Return the path below the folder of models, such as ``loras/style.safetensors``."""
        return f"{self.type}/{self.name}"


class CustomNode(_Part):
    """A custom node: a git ``repository`` at a ``commit`` (or ``gitRef``), or ``id`` and ``registryVersion`` of the Comfy registry."""

    name: str
    id: str | None = None
    registry_version: str | None = Field(default=None, alias="registryVersion")
    repository: str | None = None
    git_ref: str | None = Field(default=None, alias="gitRef")
    commit: Commit | None = None
    blob_id: str | None = Field(default=None, alias="blobId")
    source: str | None = None
    local_path: str | None = Field(default=None, alias="localPath")

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if "/" in value or not is_plain_path(value):
            _refuse("a custom node's name is the name of its folder in custom_nodes, without folders in it")
        return value

    @field_validator("repository")
    @classmethod
    def _check_repository(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            known = parts.scheme in ("https", "http", "file") and _CONTROL.search(value) is None and bool(parts.path.strip("/"))
        except ValueError:
            known = False
        if not known or "@" in parts.netloc:
            _refuse("a repository is an https:// url of git without user name or password")
        return value

    @field_validator("git_ref", "registry_version", "id")
    @classmethod
    def _check_ref(cls, value: str | None) -> str | None:
        if value is not None and (not _REF.fullmatch(value) or ".." in value):
            _refuse("a name or version is letters, digits, '.', '_', '-', '+' and '/', and begins with a letter or digit")
        return value

    @property
    def revision(self) -> str | None:
        """Return the commit or, without one, the tag or branch."""
        return self.commit or self.git_ref


class Definition(_Part):
    """What a version contains: ComfyUI's revision, models, custom nodes and Python packages."""

    schema_: str | None = Field(default=None, alias="schema")
    base_comfy_version: str | None = Field(default=None, alias="baseComfyVersion")
    models: list[ModelFile] = Field(default_factory=list, max_length=MAX_ENTRIES)
    custom_nodes: list[CustomNode] = Field(default_factory=list, alias="customNodes", max_length=MAX_ENTRIES)
    pip_dependencies: str | None = Field(default=None, alias="pipDependencies")
    environment: dict[str, Any] | None = None

    @field_validator("base_comfy_version")
    @classmethod
    def _check_version(cls, value: str | None) -> str | None:
        if value is not None and (not _REF.fullmatch(value) or ".." in value):
            _refuse("a version of ComfyUI is a tag such as v0.33.0, a branch or a commit")
        return value

    @field_validator("pip_dependencies")
    @classmethod
    def _check_requirements(cls, value: str | None) -> str | None:
        if value is not None and len(value.encode("utf-8", "surrogatepass")) > MAX_REQUIREMENTS_BYTES:
            _refuse(f"requirements have at most {MAX_REQUIREMENTS_BYTES} bytes")
        return value

    @model_validator(mode="after")
    def _check_duplicates(self) -> Self:
        for kind, names in (
            ("models", [model.target for model in self.models]),
            ("customNodes", [node.name for node in self.custom_nodes]),
        ):
            seen: dict[str, int] = {}
            for index, name in enumerate(names):
                first = seen.setdefault(name.casefold(), index)
                if first != index:
                    _refuse(
                        f"{kind}[{first}] and {kind}[{index}] are both {name!r}{self._difference(kind, first, index)}; keep one of them"
                    )
        return self

    def _difference(self, kind: str, first: int, index: int) -> str:
        """Return, for a message, in which way two entries of one name differ."""
        if kind != "models":
            return ""
        hashes = [self.models[number].sha256 for number in (first, index)]
        return "" if hashes[0] == hashes[1] else f", with sha256 {hashes[0]} and {hashes[1]}"


class InputTarget(BaseModel):
    """The node and the field that an input of a version sets. Also written as the text ``NODE.FIELD``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str = Field(min_length=1)
    field: str = Field(min_length=1)
    default: Any = None
    description: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        node, dot, field = value.rpartition(".")
        if not dot:
            _refuse("an input is {node, field} or the text 'NODE.FIELD'")
        return {"node": node, "field": field}


class YggdrasillPart(BaseModel):
    """The part ``x-yggdrasill``: how a worker runs the version.

    Attributes:
        workflow: A prompt in ComfyUI's API format, or the path of its JSON file relative to the spec.
        inputs: What a caller may set, by name.
        models_dir: The folder of models, absolute or relative to ComfyUI's folder.
        output_mode: How results are returned.
        env: Environment variables of the ComfyUI process. They are not for secrets.
        comfy_args: Command-line arguments of ComfyUI.
        sources: Further places of model files, by sha256. They are tried in order, before ``sourceUri``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    workflow: dict[str, Any] | str | None = None
    inputs: dict[str, InputTarget] = Field(default_factory=dict)
    models_dir: str | None = Field(default=None, min_length=1)
    output_mode: Literal["gcs", "s3", "base64"] | None = None
    env: dict[str, str] = Field(default_factory=dict)
    comfy_args: list[str] = Field(default_factory=list)
    sources: dict[Sha256, list[str]] = Field(default_factory=dict)

    @field_validator("env")
    @classmethod
    def _check_env(cls, value: dict[str, str]) -> dict[str, str]:
        wrong = [name for name in value if not _VARIABLE.fullmatch(name)]
        if wrong:
            _refuse(f"not names of environment variables: {format_options(wrong)}")
        return value

    @field_validator("sources")
    @classmethod
    def _check_sources(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        for urls in value.values():
            for url in urls:
                _checked_url(url)
        return value


class VersionSpec(_Part):
    """A version of ComfyUI with its models, custom nodes and packages. ``id`` is the platform's; ``version_id`` is the stem of its file."""

    schema_: Literal["comfy-build/1"] = Field(alias="schema")
    id: str | None = None
    name: str
    description: str = ""
    synced_revision: str | None = Field(default=None, alias="syncedRevision")
    definition: Definition
    x: YggdrasillPart = Field(default_factory=YggdrasillPart, alias="x-yggdrasill")

    _file: Path | None = PrivateAttr(default=None)

    @property
    def file(self) -> Path | None:
        """Return the file that the spec was read from."""
        return self._file

    @property
    def version_id(self) -> str:
        """Return the id that callers name the version by: the stem of its file, or its name if it was not read from a file."""
        return self.name if self._file is None else self._file.stem

    def read_prompt(self) -> dict[str, Any] | None:
        """Return the prompt of the version, from the spec or the file that it names; None without one.

        Raises:
            InvalidConfig: the file is not JSON. MissingFile: it does not exist, or is outside the folder of the spec.
        """
        workflow = self.x.workflow
        if not isinstance(workflow, str):
            return workflow
        folder = Path() if self._file is None else self._file.parent
        file = folder / workflow
        if not file.resolve().is_relative_to(folder.resolve()):
            raise MissingFile(
                f"The workflow {workflow!r} of version {self.version_id!r} is outside {str(folder)!r}. Put it beside the spec."
            )
        return read_document(file)

    def sources_of(self, model: ModelFile) -> list[str]:
        """Return the places of a model file, in the order in which they are tried."""
        further = self.x.sources.get(model.sha256, []) if model.sha256 else []
        return list(dict.fromkeys([*further, *([model.source_uri] if model.source_uri else [])]))

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document: the keys that were set, in the order of the format; models and custom nodes sorted."""
        document = {
            "id": None,
            "description": "",
            "syncedRevision": None,
            **self.model_dump(mode="json", by_alias=True, exclude_unset=True),
        }
        definition = document["definition"]
        for key, names in _SORTED.items():
            if key in definition:
                definition[key] = _sorted_by(definition[key], names)
        # the part is left as it is: a prompt and its inputs have an order
        part = {"x-yggdrasill": document.pop("x-yggdrasill")} if "x-yggdrasill" in document else {}
        return {**_ordered(document, _KEYS), "definition": _ordered(definition, _DEFINITION_KEYS), **part}


_KEYS = ("schema", "id", "name", "description", "syncedRevision", "definition")
_DEFINITION_KEYS = ("schema", "baseComfyVersion", "models", "customNodes", "pipDependencies", "environment")
_SORTED = {"models": ("type", "filename", "sha256"), "customNodes": ("name", "id", "repository")}


def _sorted_by(entries: list[dict[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    return sorted(entries, key=lambda entry: [entry.get(name) or "" for name in names])


def _ordered(value: Any, first: Iterable[str] = ()) -> Any:
    """Return a JSON value with the keys of all its objects sorted, those in ``first`` before the others of the outermost one."""
    if isinstance(value, list):
        return [_ordered(item) for item in value]
    if not isinstance(value, dict):
        return value
    known = [key for key in first if key in value]
    return {key: _ordered(value[key]) for key in [*known, *sorted(value.keys() - set(known))]}


def spec_from_document(document: Mapping[str, Any], where: str, file: Path | None = None) -> VersionSpec:
    """Return the spec of a JSON document. ``where`` names it in messages.

    Raises:
        InvalidConfig: with the place of every mistake.
    """
    spec = read_model(VersionSpec, dict(document), where)
    spec._file = file
    return spec
