"""Bringing one model file here, as the work of a job: its progress is told, it can be cancelled, and it appears whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from yggdrasill.errors import CorruptData, EndpointUnreachable, LimitExceeded, StorageFailed
from yggdrasill.executor.context import current_run
from yggdrasill.server_ext.deployment import Deployment
from yggdrasill.server_ext.identity import deployment_hash
from yggdrasill.server_ext.model_sources import ModelRequest, ModelSources

if TYPE_CHECKING:
    import requests

__all__ = ["ModelFetch", "fetching"]

_CHUNK = 1 << 20
_MOST_REDIRECTS = 5
_TIMEOUT = (10.0, 60.0)
_REDIRECTS = (301, 302, 303, 307, 308)


class ModelFetch:
    """Runs as a graph without inputs; its outputs are ``file``, ``nbytes`` and ``sha256``.

    Redirects are followed to allowed addresses only. No proxy, cookie or credential of this machine is used. ``key`` is that of the job: where
    a process was killed in the middle of it, the next one removes what was left.
    """

    accepts_handles = False
    deterministic = False

    def __init__(self, sources: ModelSources, request: ModelRequest, key: str) -> None:
        self._sources, self._request, self._key = sources, request, key

    def run(self, inputs: Any, **_: Any) -> dict[str, Any]:
        """Fetch the file.

        Raises:
            AccessDenied: a redirect leaves the allowed sources. EndpointUnreachable: the source does not give it.
            LimitExceeded: it is too long. CorruptData: it is another file. StorageFailed, Cancelled, and as `ModelSources.target`.
        """
        target = self._sources.target(self._request)
        digest = hashlib.sha256()
        with current_run().host.release_slot(), self._opened() as response:
            length = self._length(response, target)
            with _appearing(target, self._key) as write:
                for chunk in self._chunks(response, digest, length):
                    write(chunk)
                self._check(digest.hexdigest())
                self._sources.target(self._request)
        return {"file": f"{self._request.folder}/{self._request.name}", "nbytes": target.stat().st_size, "sha256": digest.hexdigest()}

    @contextmanager
    def _opened(self) -> Iterator[requests.Response]:
        """The answer that holds the file."""
        import requests

        url = self._request.url
        with requests.Session() as session:
            session.trust_env = False
            try:
                for _ in range(_MOST_REDIRECTS + 1):
                    self._sources.check_source(url)
                    with session.get(
                        url, stream=True, allow_redirects=False, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"}
                    ) as response:
                        session.cookies.clear()
                        if response.status_code not in _REDIRECTS:
                            if response.status_code != 200 or "Content-Encoding" in response.headers:
                                raise self._refused(f"it answers HTTP {response.status_code}")
                            yield response
                            return
                        url = urljoin(url, response.headers.get("Location", ""))
                raise self._refused(f"it redirects more than {_MOST_REDIRECTS} times")
            except requests.RequestException as error:
                raise self._refused(type(error).__name__) from error

    def _length(self, response: requests.Response, target: Path) -> int | None:
        """The bytes to come, None if the source does not say."""
        told = response.headers.get("Content-Length", "")
        length = int(told) if told.isascii() and told.isdigit() else None
        if length is not None:
            self._check_limit(length)
            place = next(folder for folder in target.parents if folder.exists())
            if length > shutil.disk_usage(place).free:
                raise StorageFailed(
                    f"{self._request.name!r} has {length} bytes, and there is less room on the disk; make room", path=str(place)
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
            raise self._refused(f"it broke off after {done} of {length} bytes")

    def _check(self, found: str) -> None:
        wanted = self._request.sha256
        if wanted is not None and found != wanted.lower():
            raise CorruptData(f"{self._request.name!r} has another content than asked for: its sha256 is {found}, not {wanted}")

    def _check_limit(self, nbytes: int) -> None:
        bound = self._sources.most_bytes
        if nbytes > bound:
            raise LimitExceeded(
                f"{self._request.name!r} is longer than the {bound} bytes that this endpoint fetches; raise 'model_limit' of settings.yaml there",
                bound=bound,
            )

    def _refused(self, why: str) -> EndpointUnreachable:
        return EndpointUnreachable(f"the source of {self._request.name!r} does not give it: {why}; try another one, or later")


@contextmanager
def _appearing(target: Path, key: str) -> Iterator[Callable[[bytes], None]]:
    """A function that writes to a file, which has its name once this was left normally and leaves no trace otherwise.

    What a process that was killed left of it under the same ``key`` is gone as well.

    Raises:
        StorageFailed
    """
    folder = next(folder for folder in target.parents if folder.exists())
    temporary = folder / f".{target.name}.{hashlib.sha256(key.encode()).hexdigest()[:16]}.part"
    try:
        with _storing(target):
            temporary.unlink(missing_ok=True)
            file = temporary.open("xb")
        with file:

            def write(chunk: bytes) -> None:
                with _storing(target):
                    file.write(chunk)

            yield write
            with _storing(target):
                file.flush()
                os.fsync(file.fileno())
        with _storing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _storing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"cannot write {target.name!r}: {error.strerror or error}; nothing was changed", path=str(target)) from error


def fetching(sources: ModelSources, request: ModelRequest, key: str) -> Deployment:
    """What the job of that key runs to bring this file."""
    facts = {"folder": request.folder, "name": request.name, "url": request.url, "sha256": request.sha256}
    name = f"fetch {os.path.basename(request.name)}"[:200]  # noqa: PTH119 - it is no path of this machine
    contract = {"inputs": [], "outputs": [], "stateful": False, "deterministic": False}
    return Deployment(name, "graph", deployment_hash("graph", facts), {}, ModelFetch(sources, request, key), contract)
