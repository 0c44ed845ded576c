"""Buckets for results: Google Cloud Storage by its client library, S3 stores by obstore."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlsplit

from yggdrasill.errors import InvalidArgument, StorageFailed, YggdrasillError
from yggdrasill.worker.settings import GcsSettings, S3Settings

__all__ = ["Bucket", "GcsBucket", "S3Bucket"]

Result = TypeVar("Result")

_LOG = logging.getLogger("yggdrasill.worker")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._/ =+-]{0,500}")
_SECONDS = 120.0
_MAX_URL_TTL = 7 * 86_400


class Bucket(Protocol):
    """A bucket with a prefix, ready to receive files."""

    async def check(self) -> None:
        """Raise `StorageFailed` (code ``no_credentials`` or ``no_bucket``) if files cannot be put into it, as far as this shows without one."""
        ...

    async def put(self, path: Path, name: str, media_type: str) -> dict[str, Any]:
        """Upload a file under the prefix and return its URLs. Raise `StorageFailed` (code ``upload_failed``)."""
        ...


class GcsBucket(Bucket):
    """A bucket of Google Cloud Storage. URLs: ``gcs_url`` and, if public or signed, ``url``.

    STORAGE_EMULATOR_HOST names an emulator, which needs no credentials.
    """

    def __init__(self, settings: GcsSettings, bucket: str | None = None, prefix: str | None = None) -> None:
        self._settings = settings
        self.name = _checked_name(bucket or settings.bucket, "gcs", "gcs_bucket or GCS_BUCKET")
        self.prefix = _checked_prefix(settings.prefix if prefix is None else prefix)
        self._client: Any = None

    async def check(self) -> None:
        await asyncio.to_thread(self._connect)
        if self._settings.validate:
            await self._attempts(self._validate_bucket, "check the bucket")

    async def put(self, path: Path, name: str, media_type: str) -> dict[str, Any]:
        await asyncio.to_thread(self._connect)
        key = f"{self.prefix}{name}"
        found: dict[str, Any] = await self._attempts(lambda: self._upload(path, key, media_type), f"upload {Path(name).name!r}")
        return found

    # -- in threads ---------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._client is not None:
            return
        try:
            storage, credentials = importlib.import_module("google.cloud.storage"), importlib.import_module("google.auth.credentials")
            failures = importlib.import_module("google.auth.exceptions")
        except ImportError as error:
            raise InvalidArgument(
                "output_mode 'gcs' needs google-cloud-storage: pip install \"yggdrasill[gcs]\"", code="missing_package"
            ) from error
        try:
            if os.environ.get("STORAGE_EMULATOR_HOST"):
                # the library would use no credentials, and then it cannot sign URLs
                known = bool(os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"))
                account = importlib.import_module("google.auth").default()[0] if known else credentials.AnonymousCredentials()
                self._client = storage.Client(project=self._settings.project or "local", credentials=account)
            else:
                self._client = storage.Client(project=self._settings.project)
        except (failures.GoogleAuthError, OSError, ValueError) as error:
            raise StorageFailed(
                "There are no credentials for Google Cloud Storage. Set GOOGLE_APPLICATION_CREDENTIALS, and GOOGLE_CLOUD_PROJECT if it names no project.",
                code="no_credentials",
            ) from error

    def _validate_bucket(self) -> None:
        exceptions = importlib.import_module("google.api_core.exceptions")
        try:
            exists = self._client.bucket(self.name).exists(timeout=_SECONDS, retry=None)
        except exceptions.Forbidden:  # an account that may only write objects cannot look at the bucket
            return
        if not exists:
            raise StorageFailed(
                f"The bucket {self.name!r} does not exist in Google Cloud Storage, or this account cannot see it.", code="no_bucket"
            )

    def _upload(self, path: Path, key: str, media_type: str) -> dict[str, Any]:
        blob = self._client.bucket(self.name).blob(key)
        blob.upload_from_filename(str(path), content_type=media_type, timeout=_SECONDS, retry=None)
        if self._settings.validate:
            blob.reload(timeout=_SECONDS, retry=None)
            if blob.size != path.stat().st_size:
                raise ConnectionError(f"the object has {blob.size} bytes")
        found = {"gcs_url": f"gs://{self.name}/{key}"}
        if self._settings.public:
            blob.make_public(timeout=_SECONDS, retry=None)
            found["url"] = blob.public_url
        elif self._settings.signed_url_ttl > 0:
            lifetime = timedelta(seconds=min(self._settings.signed_url_ttl, _MAX_URL_TTL))
            found["url"] = blob.generate_signed_url(version="v4", expiration=lifetime, method="GET")
        return found

    async def _attempts(self, action: Callable[[], Result], what: str) -> Result:
        """Run an action in a thread, and again after failures that may pass."""
        exceptions, auth = importlib.import_module("google.api_core.exceptions"), importlib.import_module("google.auth.exceptions")
        passing = (exceptions.ServerError, exceptions.TooManyRequests, ConnectionError, TimeoutError, auth.TransportError)
        for attempt in range(self._settings.retries + 1):
            try:
                return await asyncio.to_thread(action)
            except YggdrasillError:
                raise
            except (exceptions.GoogleAPIError, auth.GoogleAuthError, OSError, ValueError, AttributeError) as error:
                # requests' errors are OSErrors
                may_pass = isinstance(error, passing) or type(error).__module__.startswith(("requests", "urllib3"))
                if may_pass and attempt < self._settings.retries:
                    _LOG.warning("Cannot %s in Google Cloud Storage (%s); it is tried again.", what, type(error).__name__)
                    await asyncio.sleep(self._settings.retry_base_sleep * 2**attempt)
                    continue
                raise _upload_failed(f"Cannot {what} in the bucket {self.name!r}", error) from error
        raise AssertionError("unreachable")


class S3Bucket(Bucket):
    """A bucket of an S3 store. URLs: ``s3_url`` and ``url``, which is signed for BUCKET_URL_TTL seconds."""

    def __init__(self, settings: S3Settings, bucket: str | None = None, prefix: str | None = None) -> None:
        endpoint, named = _endpoint(settings.endpoint_url)
        self._settings, self._endpoint = settings, endpoint
        self.name = _checked_name(bucket or settings.bucket or named, "s3", "s3_bucket or BUCKET_NAME")
        self.prefix = _checked_prefix(settings.prefix if prefix is None else prefix)
        self._store: Any = None

    async def check(self) -> None:
        self._connect()

    async def put(self, path: Path, name: str, media_type: str) -> dict[str, Any]:
        self._connect()
        obstore, exceptions = importlib.import_module("obstore"), importlib.import_module("obstore.exceptions")
        key = f"{self.prefix}{name}"
        try:
            await obstore.put_async(self._store, key, path, attributes={"Content-Type": media_type})
            lifetime = timedelta(seconds=min(self._settings.url_ttl, _MAX_URL_TTL))
            url = await obstore.sign_async(self._store, "GET", key, lifetime)
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise _upload_failed(f"Cannot upload {Path(name).name!r} to the bucket {self.name!r}", error) from error
        return {"s3_url": f"s3://{self.name}/{quote(key)}", "url": url}

    def _connect(self) -> None:
        if self._store is not None:
            return
        settings = self._settings
        if not settings.access_key_id or not settings.secret_access_key:
            raise StorageFailed(
                "There are no credentials for the S3 store. Set BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY.", code="no_credentials"
            )
        try:
            stores = importlib.import_module("obstore.store")
        except ImportError as error:
            raise InvalidArgument("output_mode 's3' needs obstore: pip install \"yggdrasill[stores]\"", code="missing_package") from error
        options: dict[str, Any] = {
            "access_key_id": settings.access_key_id,
            "secret_access_key": settings.secret_access_key,
            "region": settings.region or "us-east-1",
        }
        if self._endpoint:
            options |= {"endpoint": self._endpoint, "virtual_hosted_style_request": False}
        client = {"allow_http": True} if (self._endpoint or "").startswith("http://") else {}
        self._store = stores.S3Store(self.name, **options, client_options=client)


def _endpoint(url: str | None) -> tuple[str | None, str | None]:
    """Return the endpoint without a bucket, and the bucket that its host (``BUCKET.s3.REGION...``) or path names."""
    if url is None:
        return None, None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgument("BUCKET_ENDPOINT_URL must start with http:// or https:// and name a host.", code="invalid_setting")
    found = re.match(r"([a-z0-9.-]+)\.(s3[.-].+)", parts.netloc)
    if found is not None:
        return f"{parts.scheme}://{found[2]}", found[1]
    path = parts.path.strip("/")
    return f"{parts.scheme}://{parts.netloc}", path.partition("/")[0] or None


def _checked_name(name: str | None, mode: str, where: str) -> str:
    if not name:
        raise InvalidArgument(f"output_mode {mode!r} needs a bucket. Name it with {where}.", code="no_bucket")
    if not _BUCKET.fullmatch(name):
        raise InvalidArgument(f"Invalid bucket name {name[:60]!r}. Name the bucket without 'gs://', 's3://' or a path.", code="no_bucket")
    return name


def _checked_prefix(prefix: str) -> str:
    if not _PREFIX.fullmatch(prefix) or ".." in prefix.split("/"):
        raise InvalidArgument("A prefix is at most 500 letters, digits, '.', '_', '-', '=', '+', blanks and '/'.", code="invalid_prefix")
    return f"{prefix.strip('/')}/" if prefix.strip("/") else ""


def _upload_failed(what: str, error: Exception) -> StorageFailed:
    status = getattr(error, "code", None)
    shown = f"{type(error).__name__}{f', HTTP {int(status)}' if isinstance(status, int) else ''}"
    return StorageFailed(
        f"{what} ({shown}). Check the bucket, the credentials and their rights. The file is kept in the output.", code="upload_failed"
    )
