"""Assets as data: the row of an asset, its bounds, and the names and media types of files."""

from __future__ import annotations

import mimetypes
import uuid
from dataclasses import dataclass, replace
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.gateway.models import Job

__all__ = ["Asset", "AssetBounds", "AssetInUse", "Made", "check_file_name", "content_type_of"]

_LONGEST_NAME = 500
#: Types that Python's table lacks in some versions.
_TYPES = {
    ".avif": "image/avif", ".flac": "audio/flac", ".glb": "model/gltf-binary", ".gltf": "model/gltf+json", ".m4a": "audio/mp4", ".mkv": "video/x-matroska",
    ".obj": "model/obj", ".opus": "audio/ogg", ".ply": "model/ply", ".stl": "model/stl", ".webm": "video/webm", ".webp": "image/webp",
}  # fmt: skip


class AssetInUse(InvalidArgument):
    """An asset cannot be deleted, because an unfinished job needs it."""


def content_type_of(name: str) -> str:
    """Return the media type for the name of a file, ``application/octet-stream`` for an unknown one."""
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    return _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"


@dataclass(frozen=True)
class AssetBounds:
    """The bounds of the assets: bytes of all, seconds for which one is kept, and bytes of one."""

    quota: int = 50 << 30
    lifetime: float = 7 * 86400.0
    largest: int = 10 << 30


@dataclass(frozen=True)
class Asset:
    """The row of an asset. ``name`` is the file's name as its client gave it. An output of a job has its id, the key of the call and its node."""

    asset_id: str
    principal: str
    hash: str
    nbytes: int
    content_type: str
    name: str
    created: float
    expires: float
    used: float
    job_id: str | None = None
    call_key: str | None = None
    node: str | None = None
    number: int = 0


@dataclass(frozen=True)
class Made:
    """What an asset that a job has made is: an output of ``node``, the one with this ``number``. Equal identities are one asset."""

    job: Job
    node: str
    number: int
    identity: str

    @property
    def asset_id(self) -> str:
        """The id, the same for each repetition of the call."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"yggdrasill:{self.job.call_key}:{self.identity}"))

    def output(self, asset: Asset) -> Asset:
        """Return an asset as this output. It is kept at least as long as the job."""
        return replace(
            asset,
            asset_id=self.asset_id,
            expires=max(asset.expires, asset.created + self.job.retention),
            job_id=self.job.job_id,
            call_key=self.job.call_key,
            node=self.node,
            number=self.number,
        )


def check_file_name(value: Any) -> str:
    """Return the name of an asset's file. Raise `InvalidArgument` for a text that is not a relative path of printable characters."""
    parts = value.replace("\\", "/").split("/") if isinstance(value, str) else [""]
    if (
        not isinstance(value, str)
        or len(value) > _LONGEST_NAME
        or not value.isprintable()
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise InvalidArgument(
            f"The file path of an asset must be a relative path of 1 to {_LONGEST_NAME} printable characters, got {str(value)[:80]!r}."
        )
    return value
