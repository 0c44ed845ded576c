"""What building from a config passes down through the levels, and how every level opens its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import InvalidConfig
from yggdrasill.foundation.documents import check_version, read_document, resolve_ref

if TYPE_CHECKING:
    from yggdrasill.foundation.contract import Resolver
    from yggdrasill.foundation.persistence import Persistent
    from yggdrasill.foundation.pool import ReusePool
    from yggdrasill.foundation.registry import BlockRegistry

__all__ = ["BuildOptions", "build_or_pass", "open_config"]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Registry, pool, resolver, the folder refs are relative to, the place in the whole project, and whether refs are allowed."""

    registry: BlockRegistry | None = None
    pool: ReusePool | None = None
    base_dir: str | Path | None = None
    endpoints: Resolver | None = None
    path: tuple[str, ...] = ()
    allow_ref: bool = True

    def at(self, base_dir: str | Path | None) -> BuildOptions:
        """The same for a config that stands in another folder."""
        return replace(self, base_dir=base_dir)

    def below(self, child_id: str, base_dir: str | Path | None) -> BuildOptions:
        """The options for a child."""
        return replace(self, base_dir=base_dir, path=(*self.path, child_id))


def build_or_pass(
    given: Any, build: Callable[[Mapping[str, Any], BuildOptions], Any], registry: BlockRegistry | None, pool: ReusePool | None
) -> Any:
    """What was given, if it is neither a config nor the path of one; else what ``build`` makes of that.

    Raises:
        InvalidConfig, MissingFile, and what ``build`` raises
    """
    options = BuildOptions(registry, pool)
    if isinstance(given, (str, Path)):
        return build(read_document(given), options.at(Path(given).parent))
    return build(given, options) if isinstance(given, Mapping) else given


def open_config(level: type[Persistent], config: Any, options: BuildOptions) -> tuple[dict[str, Any], str, BuildOptions]:
    """The document of a config of this level (a ref followed), what messages call it, and the options for what stands in it.

    Raises:
        InvalidConfig, UnsupportedVersion, MissingFile
    """
    document, base = resolve_ref(config, options.base_dir, f"{level.level} config", options.allow_ref)
    if not isinstance(document, Mapping):
        raise InvalidConfig(f"a {level.level} config is a mapping, got {type(document).__name__}")
    where = f"{level.level} {document.get(f'{level.level}_id', 'config')!r}"
    check_version(document, level.schema_version, where)
    return dict(document), where, options.at(base)
