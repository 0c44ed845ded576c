"""Which model files may be brought here from where: what the endpoint's owner allows, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from yggdrasill.errors import AccessDenied, DuplicateName, InvalidArgument, format_options, unknown_name
from yggdrasill.remote.client import is_below
from yggdrasill.remote.preflight import is_model_file

__all__ = ["ModelRequest", "ModelSources"]

_PART = re.compile(r"[^\\/:*?\"<>|\x00-\x1f]+")
_LONGEST_NAME = 250


@dataclass(frozen=True)
class ModelRequest:
    """A file that somebody wants here: ``name`` below the model folder ``folder``; ``sha256`` in hex if its bytes are known."""

    url: str
    folder: str
    name: str
    sha256: str | None = None


@dataclass(frozen=True)
class ModelSources:
    """``prefixes`` are urls below which files may be fetched, none by default; ``folders`` gives the model folders by name.

    A file is at most ``most_bytes`` long.
    """

    prefixes: Sequence[str]
    folders: Callable[[], Mapping[str, Path]]
    most_bytes: int

    def allows(self, url: str) -> bool:
        """Whether a file may be fetched from ``url``: the first address, and each that a server sends on to."""
        return any(is_below(url, prefix) for prefix in self.prefixes)

    def check_source(self, url: str) -> None:
        """Raise `AccessDenied` unless a file may be fetched from there."""
        if not self.allows(url):
            origin = url.partition("?")[0][:200]
            allowed = f"its owner allows {format_options(self.prefixes)}" if self.prefixes else "its owner allows no source"
            raise AccessDenied(
                f"this endpoint fetches no model from {origin!r}: {allowed}; add a prefix to 'model_sources' of settings.yaml there",
                reason="source",
            )

    def target(self, request: ModelRequest) -> Path:
        """Where the file of a request goes.

        Raises:
            AccessDenied: the source. InvalidArgument: the name. UnknownName: the folder. DuplicateName: there is such a file.
        """
        self.check_source(request.url)
        folders = self.folders()
        if request.folder not in folders:
            raise unknown_name("model folder", request.folder, folders)
        parts = PurePosixPath(request.name).parts
        plain = all(_PART.fullmatch(part) and not part.startswith(".") and not part.endswith((".", " ")) for part in parts)
        if not parts or not plain or len(request.name) > _LONGEST_NAME or not is_model_file(request.name):
            raise InvalidArgument(
                f"{request.name[:100]!r} is no name for a model file: it is a plain path inside the folder that ends like a file of weights "
                "(.safetensors, .gguf ...)"
            )
        base = folders[request.folder].resolve()
        target = base.joinpath(*parts)
        if not target.resolve().is_relative_to(base):
            raise InvalidArgument(f"{request.name[:100]!r} lies outside of the folder {request.folder!r}; name a file inside it")
        if target.exists():
            raise DuplicateName(f"{request.folder}/{request.name} is there already; delete it first, or choose another name")
        return target
