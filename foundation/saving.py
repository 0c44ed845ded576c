"""Saving and loading, the same at every level: config, checkpoint, folder, archive, template.

A graph's folder holds ``config.json`` and ``checkpoint.json``. Above it, ``checkpoints/<child>/`` is the folder of a
child and ``checkpoints/<level>_meta.json`` names the children. Weights are in ``checkpoints/blobs`` of the whole save, one
file per distinct state, named by its digest; each graph's ``checkpoint.json`` names the file of each node. So a part can
be loaded alone from inside a save, and a state that several nodes share is written once.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from yggdrasill.errors import CheckpointMismatch, InvalidArgument, InvalidCheckpoint, InvalidConfig, MissingFile, error_context
from yggdrasill.foundation.archive import BLOBS, FolderSource, Source, open_source, write_archive
from yggdrasill.foundation.checkpoints import (
    BACKENDS,
    STATE_FILE,
    StateFile,
    check_backend,
    choose_backend,
    pack_manifest,
    read_saved_states,
    read_state,
)
from yggdrasill.foundation.config import BuildOptions, parse_document, read_document
from yggdrasill.foundation.container import Container
from yggdrasill.foundation.contract import whole_project
from yggdrasill.values.files import write_file
from yggdrasill.values.folders import StagedFolder, recover_folder

if TYPE_CHECKING:
    from typing_extensions import Self

    from yggdrasill.foundation.block import AbstractBaseBlock
    from yggdrasill.foundation.contract import Resolver
    from yggdrasill.foundation.pool import ReusePool
    from yggdrasill.foundation.registry import BlockRegistry

__all__ = ["Persistent", "file_name", "file_names", "read_config", "saved_files"]

_CONFIGS = ("config.yaml", "config.yml", "config.json")
_CHECKPOINTS = tuple(f"checkpoint.{backend}" for backend in BACKENDS)
#: Files of a level besides config and states; see `Persistent._read_extras`.
_EXTRAS = ("last_state.ygg",)
#: A config with none of these keys is of another program.
_OUR_KEYS = frozenset({"schema_version", "graph_id", "pipeline_id", "stage_id", "world_id", "nodes", "graphs", "pipelines", "stages"})
#: What belongs to the object and not to its structure.
_KEPT = ("_running",)
#: A state whose json is not larger is written into checkpoint.json.
_INLINE_BYTES = 4096


class Persistent(Container):
    """The files of a level. Everything is written whole or not at all; what was there before survives a failure."""

    schema_version: ClassVar[str]

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """Return the structure as JSON values."""

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        registry: BlockRegistry | None = None,
        validate: bool = False,
        *,
        pool: ReusePool | None = None,
        base_dir: str | Path | None = None,
        endpoints: Resolver | None = None,
        path: tuple[str, ...] = (),
        allow_ref: bool = True,
    ) -> Self:
        """Build from a config, `to_config`'s inverse.

        ``ref`` files are relative to ``base_dir``. ``endpoints`` places parts on other endpoints; ``path`` holds the ids
        from the outermost level of the project down to this one.

        Raises:
            InvalidConfig, UnsupportedVersion, MissingFile, UnknownBlockType, InvalidEdge; InvalidStructure if ``validate``.
        """
        with whole_project(endpoints, path, config) as resolver:
            return cls._build(config, BuildOptions(registry, pool, base_dir, resolver, path, allow_ref), validate)

    @classmethod
    @abstractmethod
    def _build(cls, config: Mapping[str, Any], options: BuildOptions, validate: bool = False) -> Self:
        """`from_config` within a project whose resolver is at hand."""

    # -- config -------------------------------------------------------------------------------------------------

    @classmethod
    def from_yaml(cls, path: str | Path, registry: BlockRegistry | None = None, validate: bool = False, **options: Any) -> Self:
        """Build from a YAML or JSON file; ``ref`` paths in it are relative to it."""
        document = read_document(path)
        with error_context(repr(str(path))):
            return cls.from_config(document, registry, validate, base_dir=Path(path).parent, **options)

    def save_config(self, path: str | Path) -> None:
        """Write the config, as YAML if the name ends in .yaml or .yml, else as JSON."""
        write_file(path, self._config_bytes(yaml=Path(path).suffix.lower() in (".yaml", ".yml")))

    def _config_bytes(self, *, yaml: bool = False) -> bytes:
        config = self.to_config()
        try:
            text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidConfig(
                f"{self.level} {self.id!r}: a config holds JSON values only: {error}; keep tensors and objects in states"
            ) from error
        if yaml:
            from yaml import safe_dump

            text = safe_dump(json.loads(text), sort_keys=False, allow_unicode=True)
        return (text.rstrip("\n") + "\n").encode("utf-8")

    # -- checkpoint ---------------------------------------------------------------------------------------------

    def save_checkpoint(self, path: str | Path, format: str = "single", backend: str | None = None) -> None:  # noqa: A002 - the name callers know
        """Write the states: one file (``single``), or a folder with a file per child (``dir``).

        Without a ``backend`` a single file is safetensors if its name ends so, else json; in a folder, states with tensors
        are safetensors and others json. Files of the children with the other ending are removed, other files are kept.

        Raises:
            UnsupportedFormat: (a NotImplementedError) a pickle backend.
            InvalidArgument: another format, or (``dir``) an id that cannot be a file name.
            StorageFailed: what was there before is unchanged.
        """
        if backend is not None:
            check_backend(backend)
        if format == "single":
            write_file(path, StateFile(self.state_dict(), backend or _backend_of(path)), durable=True)
        elif format == "dir":
            states = self.state_dict()
            names = file_names(self.child_word, states)
            owned = [f"{name}.{ending}" for name in file_names(self.child_word, self._children).values() for ending in BACKENDS]
            with StagedFolder(path, owned=owned) as folder:
                for child_id, state in states.items():
                    used = choose_backend(state, backend)
                    folder.write(f"{names[child_id]}.{used}", StateFile(state, used))
        else:
            raise InvalidArgument(f"checkpoint format is {format!r}; it can be 'single' or 'dir'")

    def load_from_checkpoint(
        self,
        config_path: str | Path | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        checkpoint: Mapping[str, Any] | None = None,
        checkpoint_path: str | Path | None = None,
        checkpoint_dir: str | Path | None = None,
        registry: BlockRegistry | None = None,
        backend: str | None = None,
    ) -> Self:
        """Load states (a dict, a file, or a folder of files), after rebuilding from a config if one is given.

        Rebuilding uses ``registry`` (default: this container's) and this container's pool. Loading is not strict: children
        without a state keep theirs. A checkpoint with none of the present children is refused, and nothing is changed.

        Raises:
            CheckpointMismatch, InvalidCheckpoint, MissingFile, InvalidConfig
        """
        state = self._given_state(checkpoint, checkpoint_path, checkpoint_dir, backend)
        target = self
        first: Any = next((graph for _, graph, _ in self.walk_nodes()), self)
        registry = registry if registry is not None else getattr(first, "registry", None)
        pool = getattr(first, "pool", None)
        if config_path is not None:
            target = self.from_yaml(config_path, registry, pool=pool)
        elif config is not None:
            target = self.from_config(config, registry, pool=pool)
        target._check_state_ids(state, (), strict=not set(state) & set(target._children))
        target.load_state_dict({key: value for key, value in state.items() if key in target._children}, strict=False)
        if target is not self:
            self._become(target)
        return self

    def _become(self, built: Self) -> None:
        """Become what was built: all attributes but the run lock."""
        kept = {name: self.__dict__[name] for name in _KEPT if name in self.__dict__}
        if "execution_version" in self.__dict__:
            # plans of the old structure that others hold must not look current
            kept["execution_version"] = max(self.__dict__["execution_version"], built.__dict__["execution_version"]) + 1
        self.__dict__ = {**built.__dict__, **kept}

    @staticmethod
    def _given_state(
        checkpoint: Mapping[str, Any] | None, path: str | Path | None, folder: str | Path | None, backend: str | None
    ) -> Mapping[str, Any]:
        if backend is not None:
            check_backend(backend)
        if checkpoint is not None:
            return checkpoint
        if path is not None:
            return read_state(path, backend)
        if folder is None:
            return {}
        if not Path(folder).is_dir():
            raise MissingFile(f"checkpoint folder {str(folder)!r} does not exist; check the path", path=str(folder))
        recover_folder(folder)
        suffixes = [f".{name}" for name in (BACKENDS if backend is None else (backend,))]
        files = sorted(file for file in Path(folder).iterdir() if file.suffix in suffixes)
        return {file.stem: read_state(file) for file in files}

    # -- folder and archive -------------------------------------------------------------------------------------

    def save(self, path: str | Path, format: str = "dir", backend: str | None = None) -> None:  # noqa: A002 - the name callers know
        """Write config and states: a folder (``dir``), or a zip or tar of the same tree (``archive``).

        The folder replaces an older save as a whole: after a failure, a full disk or a kill, one of the two is there. Files
        of the older save that the new one lacks are gone; files that no save wrote are kept. Without a ``backend``, states
        with tensors are safetensors and others json.

        Raises:
            UnsupportedFormat: a pickle backend.
            InvalidArgument: another format, an id that cannot be a file name, or a folder whose config is of another program
                or would be loaded first.
            StorageFailed: what was there before is unchanged.
        """
        if backend is not None:
            check_backend(backend)
        if format == "dir":
            with StagedFolder(path, owned=saved_files(Path(path))) as folder:
                for name, content in self._files("", _StateFiles(backend, folder)):
                    folder.write(name, content)
        elif format == "archive":
            write_archive(path, self._files("", _StateFiles(backend)))
        else:
            raise InvalidArgument(f"save format is {format!r}; it can be 'dir' or 'archive'")

    @classmethod
    def load(cls, path: str | Path, *, registry: BlockRegistry | None = None, **options: Any) -> Self:
        """Build from what `save` wrote, a folder or an archive, and load its states (strictly). A graph's folder without a
        checkpoint is loaded as built.

        Raises:
            MissingFile: (a FileNotFoundError) no config in it, or weights of a part whose save is not around it.
            InvalidConfig, InvalidCheckpoint, CheckpointMismatch
        """
        with open_source(path) as source:
            config = read_config(source)
            with error_context(source.describe("")):
                built = cls.from_config(config, registry, base_dir=Path(path) if isinstance(source, FolderSource) else None, **options)
            built._load_states(built._read_states(source, ""), strict=True)
            built._read_extras(source)
        return built

    def _files(self, folder: str, states: _StateFiles) -> Iterator[tuple[str, bytes | StateFile]]:
        """Yield every file of the save as (name, content), in ``folder`` of it."""
        yield f"{folder}config.json", self._config_bytes()
        if self.level == "graph":
            found: dict[str, Any] = {}
            for path, _, node in self.walk_nodes():
                yield from states.add(node.block, path[-1], found)
            yield f"{folder}checkpoint.json", pack_manifest(found)
            return
        names = file_names(self.child_word, self._children)
        for child_id, child in self._children.items():
            if isinstance(child, Persistent):
                yield from child._files(f"{folder}checkpoints/{names[child_id]}/", states)
        yield f"{folder}checkpoints/{self.level}_meta.json", (json.dumps(self._meta(), indent=2) + "\n").encode("utf-8")

    def _meta(self) -> dict[str, Any]:
        return {f"{self.level}_id": self.id, "node_ids": list(self._children), "version": self.schema_version}

    def _read_states(self, source: Source, folder: str) -> dict[str, Any] | None:
        """Return the states of the save, None for a graph without a checkpoint."""
        if self.level == "graph":
            return read_saved_states(source, folder)
        self._check_meta(source, folder)
        states = {}
        for child_id, child in self._children.items():
            if isinstance(child, Persistent):
                states[child_id] = child._read_states(source, f"{folder}checkpoints/{file_name(self.child_word, child_id)}/")
        return states

    def _check_meta(self, source: Source, folder: str) -> None:
        name = f"{folder}checkpoints/{self.level}_meta.json"
        data = source.read(name)
        if data is None:
            return
        meta = parse_document(data.decode("utf-8", "replace"), source.describe(name), yaml=False)
        node_ids = meta.get("node_ids", [])
        if not isinstance(node_ids, list):
            raise InvalidCheckpoint(f"{source.describe(name)}: node_ids must be a list, got {type(node_ids).__name__}")
        stray = sorted(set(map(str, node_ids)) ^ set(self._children))
        if stray:
            raise CheckpointMismatch(
                f"{source.describe(name)} is a checkpoint of {self.level} {meta.get(f'{self.level}_id')!r}; it and {self.id!r} differ in {stray}"
            )

    def _read_extras(self, source: Source) -> None:
        """Read what a level saves besides config and states."""

    # -- templates ----------------------------------------------------------------------------------------------

    @classmethod
    def from_template(
        cls,
        name: str,
        *,
        registry: BlockRegistry | None = None,
        validate: bool = False,
        pool: ReusePool | None = None,
        endpoints: Resolver | None = None,
        parameters: Mapping[str, Any] | None = None,
        **keywords: Any,
    ) -> Self:
        """Build from a template of this level. ``registry``, ``validate``, ``pool`` and ``endpoints`` are options of `from_config`.

        Parameters of the template are ``keywords``, or entries of ``parameters``, which may also have the name of an option.

        Raises:
            UnknownName: (a KeyError) no template, or no parameter, of that name.
            InvalidArgument: a parameter is given both ways.
        """
        from yggdrasill.foundation.templates import render_template

        given = dict(parameters or {})
        if twice := sorted(given.keys() & keywords.keys()):
            raise InvalidArgument(f"Parameter {twice[0]!r} of template {name!r} is given twice; pass it once.")
        config = render_template(cls.level, name, {**given, **keywords})
        return cls.from_config(config, registry, validate, pool=pool, endpoints=endpoints)


class _StateFiles:
    """The weights files of one save: each block's state once, each distinct state in one file.

    A file's name is the digest of its state. In a ``folder`` it is known after writing, in an archive before.
    """

    def __init__(self, backend: str | None, folder: StagedFolder | None = None) -> None:
        self._backend = backend
        self._folder = folder
        self._known: dict[int, Any] = {}
        self._written: set[str] = set()

    def add(self, block: AbstractBaseBlock, node_id: str, states: dict[str, Any]) -> Iterator[tuple[str, StateFile]]:
        """Enter a node's state, or the name of its file, into ``states``; yield a file that is still to be written."""
        if id(block) not in self._known:
            state = block.state_dict()
            backend = choose_backend(state, self._backend)
            content = StateFile(state, backend)
            if not state or (backend == "json" and content.nbytes <= _INLINE_BYTES):
                self._known[id(block)] = state
            else:
                if self._folder is not None:
                    self._folder.write(f"{BLOBS}/new.part", content)
                name = self._known[id(block)] = f"{content.digest}.{backend}"
                if self._folder is not None:
                    self._folder.rename(f"{BLOBS}/new.part", f"{BLOBS}/{name}")
                elif name not in self._written:
                    yield f"{BLOBS}/{name}", content
                self._written.add(name)
        if self._known[id(block)]:
            states[node_id] = self._known[id(block)]


def saved_files(folder: Path) -> list[str]:
    """Return the files in ``folder`` that belong to a save of this package, relative to it with ``/``.

    Raises:
        InvalidArgument: its config is of another program, or one that `Persistent.load` would prefer.
    """
    for name in _CONFIGS[:-1]:
        if (folder / name).exists():
            raise InvalidArgument(f"{str(folder / name)!r} would be loaded before config.json; remove it or choose another folder")
    config = folder / "config.json"
    if not config.is_file():
        return []
    try:
        document = read_document(config)
    except InvalidConfig:
        # a damaged save may be replaced
        document = dict.fromkeys(_OUR_KEYS)
    if not _OUR_KEYS & set(document):
        raise InvalidArgument(f"{str(config)!r} is the config of another program; choose another folder")
    return list(_files_of_save(folder, ""))


def _files_of_save(folder: Path, prefix: str) -> Iterator[str]:
    for name in ("config.json", *_CHECKPOINTS, *_EXTRAS):
        if (folder / name).is_file():
            yield f"{prefix}{name}"
    below = folder / "checkpoints"
    for file in (below / "blobs").glob("*"):
        if STATE_FILE.fullmatch(file.name):
            yield f"{prefix}checkpoints/blobs/{file.name}"
    for meta in sorted(below.glob("*_meta.json")):
        yield f"{prefix}checkpoints/{meta.name}"
        try:
            children = read_document(meta).get("node_ids", [])
        except InvalidConfig:
            children = []
        for child_id in children if isinstance(children, list) else []:
            if isinstance(child_id, str) and not _UNSAFE.search(child_id):
                yield from _files_of_save(below / child_id, f"{prefix}checkpoints/{child_id}/")


def _backend_of(path: str | Path) -> str:
    return "safetensors" if Path(path).suffix.lower() == ".safetensors" else "json"


def read_config(source: Source) -> dict[str, Any]:
    """Return the config of a save: its ``config.yaml``, ``config.yml`` or ``config.json``, the first that exists.

    Raises:
        MissingFile, InvalidConfig
    """
    for name in _CONFIGS:
        data = source.read(name)
        if data is not None:
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InvalidConfig(f"{source.describe(name)} is not UTF-8 text: {error}") from error
            return parse_document(text, source.describe(name), yaml=not name.endswith(".json"))
    raise MissingFile(f"{source.describe('')} holds no config.json or config.yaml; choose a folder or archive that save() wrote")


_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]|^\.+$|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


def file_names(word: str, child_ids: Iterable[str]) -> dict[str, str]:
    """Return file names by id, distinct also on file systems that ignore case."""
    names: dict[str, str] = {}
    for child_id in child_ids:
        other = names.setdefault(file_name(word, child_id).casefold(), child_id)
        if other != child_id:
            raise InvalidArgument(
                f"{word} ids {other!r} and {child_id!r} would be one file on some systems; rename one or use format='single'"
            )
    return {child_id: child_id for child_id in names.values()}


def file_name(word: str, child_id: str) -> str:
    """Return ``child_id`` if it can be a file name on every system.

    Raises:
        InvalidArgument: it has a path separator or another character some system refuses.
    """
    if _UNSAFE.search(child_id):
        raise InvalidArgument(
            f"{word} id {child_id!r} cannot be a file name (path separators and <>:\"|?* are refused); rename it or use format='single'"
        )
    return child_id
