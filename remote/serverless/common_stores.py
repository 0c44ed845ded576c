"""Artifact stores that a caller and the workers of a serverless endpoint share: a folder, or a bucket of S3 or Google Cloud Storage.

They take the artifacts that are too large for a message. Nothing is deleted from them: a lifecycle rule of the bucket, or of the folder's owner, may
remove objects that are older than a day.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from yggdrasill.errors import CorruptData, InvalidArgument, InvalidConfig, StorageFailed, UnknownArtifact
from yggdrasill.values.payload import blake3_hex
from yggdrasill.values.stores.base import check_hash
from yggdrasill.values.stores.shared import SharedFolderStore

__all__ = ["STORE_VARIABLE", "CommonStore", "check_store", "open_store", "require_common_store"]

STORE_VARIABLE = "YGGDRASILL_ARTIFACT_STORE"
"""The environment variable with the store of a worker."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._/=+-]{0,500}")
_FORMS = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, or the absolute path of a folder that both sides have"


class CommonStore(Protocol):
    """A shared artifact store. ``mark`` identifies it to the other side, without a path or a credential."""

    @property
    def mark(self) -> dict[str, str]:
        """Return ``{"kind", "id"}``, equal for all users of the same store."""
        ...

    async def missing(self, hashes: Sequence[str]) -> list[str]:
        """Return those of ``hashes`` that the store lacks. Raises `StorageFailed`."""
        ...

    async def put(self, name: str, data: memoryview) -> None:
        """Store the bytes of the artifact ``name``, whose hash was verified. Raises `StorageFailed`."""
        ...

    async def read(self, name: str) -> memoryview:
        """Return the verified bytes of an artifact. Raises `UnknownArtifact`, `CorruptData` or `StorageFailed`."""
        ...


def check_store(text: str, where: str) -> str:
    """Return the text of a setting that names a store. Raise `InvalidConfig` for another text; it is not repeated if it has credentials."""
    if "://" not in text:
        if Path(text).is_absolute():
            return text
        raise InvalidConfig(f"{where}: the artifact store must be {_FORMS}, got {text[:100]!r}.")
    parts = urlsplit(text)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InvalidConfig(f"{where}: the artifact store has credentials or a query in its URL. Credentials come from the environment.")
    prefix = parts.path.strip("/")
    if (
        parts.scheme not in ("s3", "gs")
        or not _BUCKET.fullmatch(parts.netloc)
        or not _PREFIX.fullmatch(prefix)
        or ".." in prefix.split("/")
    ):
        raise InvalidConfig(f"{where}: the artifact store must be {_FORMS}, got {text[:100]!r}.")
    return text


@lru_cache(maxsize=16)
def open_store(text: str, where: str = STORE_VARIABLE) -> CommonStore:
    """Return the store that a setting names.

    Raises:
        InvalidConfig: see `check_store`. InvalidArgument: the package for object stores is not installed. StorageFailed
    """
    check_store(text, where)
    if "://" not in text:
        return _Folder(Path(text))
    parts = urlsplit(text)
    return _Bucket(parts.scheme, parts.netloc, parts.path.strip("/"))


def require_common_store(store: CommonStore | None, mark: object) -> CommonStore:
    """Return the worker's store ``store`` after a comparison with the mark of the caller's.

    Raises:
        InvalidConfig: the worker has none, or another one.
    """
    if store is None:
        raise InvalidConfig(
            f"The caller has put artifacts into a store, and this worker has none. Set {STORE_VARIABLE} at the worker to the 'store' of the endpoint in "
            "the caller's endpoints.yaml.",
            code="no_artifact_store",
        )
    if store.mark != mark:
        raise InvalidConfig(
            f"The artifact store of this worker ({store.mark['kind']}) is not the caller's. Set {STORE_VARIABLE} at the worker and 'store' in the caller's "
            "endpoints.yaml to the same store.",
            code="other_artifact_store",
        )
    return store


class _Folder:
    """A folder; its store verifies an artifact at its first use."""

    def __init__(self, folder: Path) -> None:
        self._store = SharedFolderStore(folder)

    @property
    def mark(self) -> dict[str, str]:
        return {"kind": "folder", "id": self._store.store_id}

    async def missing(self, hashes: Sequence[str]) -> list[str]:
        return await asyncio.to_thread(self._store.missing, hashes)

    async def put(self, name: str, data: memoryview) -> None:
        await asyncio.to_thread(lambda: self._store.put(data, hash=name, verify=False))

    async def read(self, name: str) -> memoryview:
        return await asyncio.to_thread(self._store.read, name)


class _Bucket:
    """A bucket by obstore. Credentials of S3: BUCKET_ENDPOINT_URL, BUCKET_REGION, BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY, or the AWS
    variables; of Google: GOOGLE_APPLICATION_CREDENTIALS.
    """

    def __init__(self, scheme: str, bucket: str, prefix: str) -> None:
        try:
            self._obstore = importlib.import_module("obstore")
            self._exceptions = importlib.import_module("obstore.exceptions")
            stores = importlib.import_module("obstore.store")
        except ImportError as error:
            raise InvalidArgument(
                f'The artifact store {scheme}://{bucket} needs obstore: pip install "yggdrasill[stores]"', code="missing_package"
            ) from error
        self._scheme, self._bucket, self._prefix = scheme, bucket, f"{prefix}/" if prefix else ""
        try:
            self._store = _s3(stores, bucket, os.environ) if scheme == "s3" else stores.GCSStore(bucket)
        except (self._exceptions.BaseError, OSError, ValueError) as error:
            raise self._failed("open", error) from error

    @property
    def mark(self) -> dict[str, str]:
        return {"kind": self._scheme, "id": f"{self._scheme}://{self._bucket}/{self._prefix}"}

    def _key(self, name: str) -> str:
        return f"{self._prefix}{check_hash(name)[:2]}/{name}"

    async def missing(self, hashes: Sequence[str]) -> list[str]:
        found = await asyncio.gather(*map(self._has, hashes))
        return [name for name, present in zip(hashes, found, strict=True) if not present]

    async def _has(self, name: str) -> bool:
        try:
            await self._obstore.head_async(self._store, self._key(name))
        except FileNotFoundError:
            return False
        except (self._exceptions.BaseError, OSError) as error:
            raise self._failed("look into", error) from error
        return True

    async def put(self, name: str, data: memoryview) -> None:
        try:
            await self._obstore.put_async(self._store, self._key(name), data.cast("B"))
        except (self._exceptions.BaseError, OSError) as error:
            raise self._failed("write to", error) from error

    async def read(self, name: str) -> memoryview:
        try:
            answer = await self._obstore.get_async(self._store, self._key(name))
            data = memoryview(await answer.bytes_async()).cast("B")
        except FileNotFoundError:
            raise UnknownArtifact(
                f"Artifact {name} was deleted from the artifact store {self._scheme}://{self._bucket}. Call again.",
                hash=name,
                missing=[name],
            ) from None
        except (self._exceptions.BaseError, OSError) as error:
            raise self._failed("read from", error) from error
        return await asyncio.to_thread(_verified, name, data)

    def _failed(self, what: str, error: Exception) -> StorageFailed:
        return StorageFailed(
            f"Cannot {what} the artifact store {self._scheme}://{self._bucket} ({type(error).__name__}). Check the bucket, the credentials in the "
            "environment, and their rights.",
            code="artifact_store_failed",
        )


def _s3(stores: Any, bucket: str, environment: Mapping[str, str]) -> Any:
    names = {
        "endpoint": ("BUCKET_ENDPOINT_URL", "AWS_ENDPOINT_URL"),
        "region": ("BUCKET_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"),
        "access_key_id": ("BUCKET_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"),
        "secret_access_key": ("BUCKET_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"),
    }
    given = {option: next((environment[name] for name in each if environment.get(name)), None) for option, each in names.items()}
    options: dict[str, Any] = {option: value for option, value in given.items() if value is not None}
    options.setdefault("region", "us-east-1")
    if "endpoint" in options:
        options["endpoint"] = re.sub(r"^(https?://)" + re.escape(bucket) + r"\.(s3[.-])", r"\1\2", options["endpoint"]).rstrip("/")
        options["endpoint"] = options["endpoint"].removesuffix(f"/{bucket}")
        options["virtual_hosted_style_request"] = False
    client = {"allow_http": True} if str(options.get("endpoint", "")).startswith("http://") else {}
    return stores.S3Store(bucket, **options, client_options=client)


def _verified(name: str, data: memoryview) -> memoryview:
    if blake3_hex(data) != name:
        raise CorruptData(f"The artifact store has other bytes under {name}. Delete that object and call again.", hash=name)
    return data
