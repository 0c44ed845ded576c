"""Downloads of model files into ComfyUI's model folders: the sources that the owner allows, and the job that fetches one file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from yggdrasill.errors import (
    AccessDenied,
    CorruptData,
    DuplicateName,
    EndpointUnreachable,
    InvalidArgument,
    LimitExceeded,
    StorageFailed,
    format_options,
    unknown_name,
)
from yggdrasill.executor.context import current_run
from yggdrasill.remote.client import is_below
from yggdrasill.remote.model_names import is_model_file, is_plain_path
from yggdrasill.server_ext.deployment import Deployment, deployment_hash

if TYPE_CHECKING:
    import requests


__all__ = ["ModelFetch", "ModelRequest", "ModelSources", "fetch_deployment"]

_CHUNK = 1 << 20
_MAX_REDIRECTS = 5
_TIMEOUT = (10.0, 60.0)
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class ModelRequest:
    """A file to fetch: ``name`` is its path below the model folder ``folder``; ``sha256`` (hex) is verified if given."""

    url: str
    folder: str
    name: str
    sha256: str | None = None


@dataclass(frozen=True)
class ModelSources:
    """The allowed sources of model files.

    ``prefixes`` are urls below which files may be fetched; none by default. ``folders()`` returns the model folders by name.
    Files larger than ``max_bytes`` are refused.
    """

    prefixes: Sequence[str]
    folders: Callable[[], Mapping[str, Path]]
    max_bytes: int

    def allows(self, url: str) -> bool:
        """Return whether ``url``, or a redirect to it, is allowed."""
        return any(is_below(url, prefix) for prefix in self.prefixes)

    def check_source(self, url: str) -> None:
        """Raise `AccessDenied` unless ``url`` is allowed."""
        if not self.allows(url):
            origin = url.partition("?")[0][:200]
            allowed = f"Allowed: {format_options(self.prefixes)}." if self.prefixes else "No sources are allowed."
            raise AccessDenied(
                f"Source {origin!r} is not allowed on this endpoint. {allowed} Add a prefix to 'model_sources' in the endpoint's settings.yaml.",
                reason="source",
            )

    def target(self, request: ModelRequest) -> Path:
        """Return the path for the file of a request.

        Raises:
            AccessDenied: the source is not allowed. InvalidArgument: the name is invalid. UnknownName: the folder is unknown.
            DuplicateName: the file exists.
        """
        self.check_source(request.url)
        folders = self.folders()
        if request.folder not in folders:
            raise unknown_name("model folder", request.folder, folders)
        if not is_plain_path(request.name) or not is_model_file(request.name):
            raise InvalidArgument(
                f"Invalid model file name {request.name[:100]!r}. Use a relative path inside the folder with a weights suffix (.safetensors, .gguf ...)."
            )
        base = folders[request.folder].resolve()
        target = base / request.name
        if not target.resolve().is_relative_to(base):
            raise InvalidArgument(f"{request.name[:100]!r} is outside the folder {request.folder!r}. Name a file inside it.")
        if target.exists():
            raise DuplicateName(f"{request.folder}/{request.name} already exists. Delete it first, or choose another name.")
        return target


class ModelFetch:
    """A runnable without inputs that downloads one file. Outputs: ``file``, ``nbytes`` and ``sha256``.

    Redirects are followed to allowed urls only. Proxies, cookies and credentials of this machine are not used. ``key`` is the job key:
    it names the temporary file, so that a retry after a crash removes the earlier one.
    """

    accepts_handles = False
    deterministic = False

    def __init__(self, sources: ModelSources, request: ModelRequest, key: str) -> None:
        self._sources, self._request, self._key = sources, request, key

    def run(self, inputs: Any, **_: Any) -> dict[str, Any]:
        """Download the file to its target.

        Raises:
            AccessDenied: a redirect leaves the allowed sources. EndpointUnreachable: the source failed.
            LimitExceeded: the file is too large. CorruptData: its hash differs. StorageFailed, Cancelled; otherwise as
            `ModelSources.target`.
        """
        target = self._sources.target(self._request)
        digest = hashlib.sha256()
        with current_run().host.release_slot(), self._open_response() as response:
            length = self._length(response, target)
            with _atomic_writer(target, self._key) as write:
                for chunk in self._chunks(response, digest, length):
                    write(chunk)
                self._verify(digest.hexdigest())
                self._sources.target(self._request)
        return {"file": f"{self._request.folder}/{self._request.name}", "nbytes": target.stat().st_size, "sha256": digest.hexdigest()}

    @contextmanager
    def _open_response(self) -> Iterator[requests.Response]:
        """Yield the response with the file, after redirects."""
        import requests

        url = self._request.url
        with requests.Session() as session:
            session.trust_env = False
            try:
                for _ in range(_MAX_REDIRECTS + 1):
                    self._sources.check_source(url)
                    with session.get(
                        url, stream=True, allow_redirects=False, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"}
                    ) as response:
                        session.cookies.clear()
                        if response.status_code not in _REDIRECTS:
                            if response.status_code != 200 or "Content-Encoding" in response.headers:
                                raise self._source_failed(f"HTTP status {response.status_code}")
                            yield response
                            return
                        url = urljoin(url, response.headers.get("Location", ""))
                raise self._source_failed(f"more than {_MAX_REDIRECTS} redirects")
            except requests.RequestException as error:
                raise self._source_failed(type(error).__name__) from error

    def _length(self, response: requests.Response, target: Path) -> int | None:
        """Return the Content-Length, or None if it is missing. Checks the size limit and the free disk space."""
        header = response.headers.get("Content-Length", "")
        length = int(header) if header.isascii() and header.isdigit() else None
        if length is not None:
            self._check_limit(length)
            existing = next(folder for folder in target.parents if folder.exists())
            if length > shutil.disk_usage(existing).free:
                raise StorageFailed(
                    f"{self._request.name!r} has {length} bytes, more than the free space on the disk. Free some space.", path=str(existing)
                )
        return length

    def _chunks(self, response: requests.Response, digest: Any, length: int | None) -> Iterator[bytes]:
        run, done = current_run(), 0
        for chunk in response.iter_content(_CHUNK):
            run.check_cancelled()
            done += len(chunk)
            self._check_limit(done)
            digest.update(chunk)
            run.progress(done, length or 0, "bytes")
            yield chunk
        if length is not None and done != length:
            raise self._source_failed(f"the connection closed after {done} of {length} bytes")

    def _verify(self, found: str) -> None:
        wanted = self._request.sha256
        if wanted is not None and found != wanted.lower():
            raise CorruptData(f"{self._request.name!r} has sha256 {found}, expected {wanted}.")

    def _check_limit(self, nbytes: int) -> None:
        bound = self._sources.max_bytes
        if nbytes > bound:
            raise LimitExceeded(
                f"{self._request.name!r} exceeds this endpoint's limit of {bound} bytes. Raise 'model_limit' in the endpoint's settings.yaml.",
                bound=bound,
            )

    def _source_failed(self, why: str) -> EndpointUnreachable:
        return EndpointUnreachable(f"Cannot download {self._request.name!r} from its source: {why}. Try another source, or try later.")


@contextmanager
def _atomic_writer(target: Path, key: str) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that appends to a temporary file, which is renamed to ``target`` on success and deleted on failure.

    A temporary file that a killed process left under the same ``key`` is replaced.

    Raises:
        StorageFailed: the file cannot be written.
    """
    folder = next(folder for folder in target.parents if folder.exists())
    temporary = folder / f".{target.name}.{hashlib.sha256(key.encode()).hexdigest()[:16]}.part"
    try:
        with _storage_errors(target):
            temporary.unlink(missing_ok=True)
            file = temporary.open("xb")
        with file:

            def write(chunk: bytes) -> None:
                with _storage_errors(target):
                    file.write(chunk)

            yield write
            with _storage_errors(target):
                file.flush()
                os.fsync(file.fileno())
        with _storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _storage_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"Cannot write {target.name!r}: {error.strerror or error}. Nothing was changed.", path=str(target)) from error


def fetch_deployment(sources: ModelSources, request: ModelRequest, key: str) -> Deployment:
    """Return a deployment that fetches one file for the job with this key."""
    facts = {"folder": request.folder, "name": request.name, "url": request.url, "sha256": request.sha256}
    name = f"fetch {os.path.basename(request.name)}"[:200]  # noqa: PTH119 - not a path on this machine
    contract = {"inputs": [], "outputs": [], "stateful": False, "deterministic": False}
    return Deployment(name, "graph", deployment_hash("graph", facts), {}, ModelFetch(sources, request, key), contract)
