"""Saving and loading, the same at every level: config, checkpoint, folder, archive, template.

A graph's folder holds ``config.json`` and ``checkpoint.json``. Above it, ``checkpoints/<child>/`` holds the child's own
folder and ``checkpoints/<level>_meta.json`` says whose they are; so any part of a save can be loaded alone. A block
shared by several parts is written once, where it is first used.

Which ids can be file names, on every system.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from yggdrasill.errors import CheckpointMismatch, InvalidArgument, InvalidCheckpoint, InvalidConfig, MissingFile, error_context
from yggdrasill.foundation.archive import FolderSource, Source, open_source, write_archive
from yggdrasill.foundation.checkpoints import BACKENDS, check_backend, pack_state, read_state, unpack_state
from yggdrasill.foundation.config import BuildOptions, parse_document, read_document
from yggdrasill.foundation.container import Container
from yggdrasill.foundation.contract import whole_project
from yggdrasill.values.files import FileSet, write_file

if TYPE_CHECKING:
    from typing_extensions import Self

    from yggdrasill.foundation.contract import Resolver
    from yggdrasill.foundation.pool import ReusePool
    from yggdrasill.foundation.registry import BlockRegistry

__all__ = ["Persistent", "file_name", "file_names"]

_CONFIGS = ("config.yaml", "config.yml", "config.json")


class Persistent(Container):
    """The files of a level. Everything is written whole or not at all; what was there before survives a failure."""

    schema_version: ClassVar[str]

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """The structure as JSON values."""

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

        ``ref`` files are relative to ``base_dir``. ``endpoints`` says which parts run elsewhere; ``path`` is where this one
        stands in a larger project, from the outermost level down.

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

    def save_checkpoint(self, path: str | Path, format: str = "single", backend: str = "json") -> None:  # noqa: A002 - the name callers know
        """Write the states: one file (``single``), or a folder with a file per child (``dir``). Files of the same name with
        the other backend's ending, which would be read as well, are removed.

        Raises:
            UnsupportedFormat: (a NotImplementedError) a pickle backend.
            InvalidArgument: another format, or (``dir``) an id that cannot be a file name.
        """
        check_backend(backend)
        if format == "single":
            write_file(path, pack_state(self.state_dict(), backend))
        elif format == "dir":
            _write_folder(Path(path), self._checkpoint_files(backend))
        else:
            raise InvalidArgument(f"checkpoint format is {format!r}; it can be 'single' or 'dir'")

    def _checkpoint_files(self, backend: str) -> Iterator[tuple[str, bytes]]:
        states = self.state_dict()
        names = file_names(self.child_word, states)
        for child_id, state in states.items():
            yield f"{names[child_id]}.{backend}", pack_state(state, backend)

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

        Loading is not strict: children without a state keep theirs. A checkpoint none of whose children exist here is
        refused, and nothing is changed.

        Raises:
            CheckpointMismatch, InvalidCheckpoint, MissingFile, InvalidConfig
        """
        state = self._given_state(checkpoint, checkpoint_path, checkpoint_dir, backend)
        target = self
        if config_path is not None:
            target = self.from_yaml(config_path, registry)
        elif config is not None:
            target = self.from_config(config, registry)
        target._check_state_ids(state, (), strict=not set(state) & set(target._children))
        target.load_state_dict({key: value for key, value in state.items() if key in target._children}, strict=False)
        if target is not self:
            self.__dict__.clear()
            self.__dict__.update(target.__dict__)
        return self

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
            raise MissingFile(f"there is no checkpoint folder {str(folder)!r}; check the path", path=str(folder))
        suffixes = [f".{name}" for name in (BACKENDS if backend is None else (backend,))]
        files = sorted(file for file in Path(folder).iterdir() if file.suffix in suffixes)
        return {file.stem: read_state(file) for file in files}

    # -- folder and archive -------------------------------------------------------------------------------------

    def save(self, path: str | Path, format: str = "dir", backend: str = "json") -> None:  # noqa: A002 - the name callers know
        """Write config and states: a folder (``dir``), or a zip or tar of the same tree (``archive``).

        Raises:
            UnsupportedFormat: a pickle backend.
            InvalidArgument: another format, an id that cannot be a file name, or a folder whose config.yaml `load` would prefer.
            StorageFailed: nothing was written.
        """
        check_backend(backend)
        if format == "dir":
            for name in _CONFIGS[:-1]:
                if (Path(path) / name).exists():
                    raise InvalidArgument(
                        f"{str(Path(path) / name)!r} would be loaded before config.json; remove it or choose another folder"
                    )
            _write_folder(Path(path), self._files(backend, set()))
        elif format == "archive":
            write_archive(path, self._files(backend, set()))
        else:
            raise InvalidArgument(f"save format is {format!r}; it can be 'dir' or 'archive'")

    @classmethod
    def load(cls, path: str | Path, *, registry: BlockRegistry | None = None, **options: Any) -> Self:
        """Build from what `save` wrote, a folder or an archive, and load its states (strictly).

        Raises:
            MissingFile: (a FileNotFoundError) no config in it.
            InvalidConfig, InvalidCheckpoint, CheckpointMismatch
        """
        with open_source(path) as source:
            config = _read_config(source)
            with error_context(source.describe("")):
                built = cls.from_config(config, registry, base_dir=Path(path) if isinstance(source, FolderSource) else None, **options)
            built.load_state_dict(built._read_states(source, ""), strict=True)
            built._read_extras(source)
        return built

    def _files(self, backend: str, written: set[int]) -> Iterator[tuple[str, bytes]]:
        """Every file of the save as (name, bytes), made one after another."""
        yield "config.json", self._config_bytes()
        if self.level == "graph":
            yield f"checkpoint.{backend}", pack_state(self._collect_state(written), backend)
            return
        names = file_names(self.child_word, self._children)
        for child_id, child in self._children.items():
            if isinstance(child, Persistent):
                folder = f"checkpoints/{names[child_id]}"
                for name, data in child._files(backend, written):
                    yield f"{folder}/{name}", data
        yield f"checkpoints/{self.level}_meta.json", (json.dumps(self._meta(), indent=2) + "\n").encode("utf-8")

    def _meta(self) -> dict[str, Any]:
        return {f"{self.level}_id": self.id, "node_ids": list(self._children), "version": self.schema_version}

    def _read_states(self, source: Source, folder: str) -> dict[str, Any]:
        if self.level == "graph":
            for backend in BACKENDS:
                data = source.read(f"{folder}checkpoint.{backend}")
                if data is not None:
                    return unpack_state(data, backend, source.describe(f"{folder}checkpoint.{backend}"))
            return {}
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
        """A level that saves more than config and states reads it back here."""

    # -- templates ----------------------------------------------------------------------------------------------

    @classmethod
    def from_template(cls, name: str, *, registry: BlockRegistry | None = None, validate: bool = False, **parameters: Any) -> Self:
        """Build from a template of this level; ``parameters`` are the template's own.

        Raises:
            UnknownName: (a KeyError) no template, or no parameter, of that name.
        """
        from yggdrasill.foundation.templates import render_template

        return cls.from_config(render_template(cls.level, name, parameters), registry, validate)


def _write_folder(folder: Path, contents: Iterable[tuple[str, bytes]]) -> None:
    """Write the files; then remove the other backends' versions of them, which a later load would find."""
    names = []
    with FileSet() as files:
        for name, data in contents:
            files.write(folder / name, data)
            names.append(folder / name)
    for path in names:
        for backend in BACKENDS:
            other = path.with_name(f"{path.name.removesuffix(path.suffix)}.{backend}")
            if path.name != "config.json" and path.suffix.lstrip(".") in BACKENDS and other not in names:
                other.unlink(missing_ok=True)


def _read_config(source: Source) -> dict[str, Any]:
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
    """File names by id, each its own also where upper and lower case are one."""
    names: dict[str, str] = {}
    for child_id in child_ids:
        other = names.setdefault(file_name(word, child_id).casefold(), child_id)
        if other != child_id:
            raise InvalidArgument(
                f"{word} ids {other!r} and {child_id!r} would be one file on some systems; rename one or use format='single'"
            )
    return {child_id: child_id for child_id in names.values()}


def file_name(word: str, child_id: str) -> str:
    """``child_id`` if it can be a file name on every system.

    Raises:
        InvalidArgument: it has a path separator or another character some system refuses.
    """
    if _UNSAFE.search(child_id):
        raise InvalidArgument(
            f"{word} id {child_id!r} cannot be a file name (path separators and <>:\"|?* are refused); rename it or use format='single'"
        )
    return child_id
