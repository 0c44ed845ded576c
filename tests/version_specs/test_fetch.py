"""Downloads: continued after everything that breaks them, complete or not there."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samples.file_server import FileServer, digest_of
from samples.http_client import until
from yggdrasill.errors import AccessDenied, CorruptData, EndpointUnreachable, MissingFile, StorageFailed, YggdrasillError
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.version_specs.cache import ModelCache
from yggdrasill.version_specs.fetch import Download, Fetched, Fetcher
from yggdrasill.version_specs.sources import SourcePool

RETRIES = RetryPolicy(first=0.3, later=3.0)


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


def download(server: FileServer, path: str, name: str, **facts: Any) -> Download:
    data = server.files[name]
    return Download(name, [f"{server.url}/{path}/{name}"], **{"sha256": digest_of(data), "nbytes": len(data), **facts})


def fetch(cache: ModelCache, *downloads: Download, during: Callable[[Fetcher], Any] | None = None, **settings: Any) -> Fetched:
    async def run() -> Fetched:
        async with SourcePool(
            allow_private=True, silence=settings.pop("silence", 5.0), environment=settings.pop("environment", {})
        ) as pool:
            with Fetcher(cache, pool, **{"retry_policy": RETRIES, **settings}) as fetcher:
                found = await fetcher.fetch_all(downloads)
                assert fetcher.done <= sum(each.nbytes or 10**9 for each in downloads)
                if during is not None:
                    during(fetcher)
                return found

    return asyncio.run(run())


def names(cache: ModelCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir()) if cache.folder.exists() else []


def test_files_are_named_by_their_hashes(cache: ModelCache, server: FileServer) -> None:
    for name in ("a", "b", "empty"):
        server.add(name, 0 if name == "empty" else 300_000)
    found = fetch(cache, *(download(server, "plain", name) for name in server.files))
    assert not found.errors
    assert found.hashes == {name: digest_of(data) for name, data in server.files.items()}
    assert names(cache) == sorted(found.hashes.values())
    assert all(cache.path(digest).read_bytes() == server.files[name] for name, digest in found.hashes.items())


def test_a_connection_that_is_cut_again_and_again_is_continued(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a")
    assert not fetch(cache, download(server, "cut", "a")).errors
    assert cache.path(digest_of(data)).read_bytes() == data
    ranges = [headers["range"] for path, headers in server.requests if "range" in headers]
    assert len(ranges) >= 4
    assert all(first != "bytes=0-" for first in ranges)


def test_a_server_without_ranges_is_read_again_from_its_beginning(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a")
    assert not fetch(cache, download(server, "norange", "a")).errors
    assert cache.path(digest_of(data)).read_bytes() == data
    assert len(server.requests) == 2


@pytest.mark.parametrize("path", ["plain", "unsized", "cut"])
def test_a_size_that_is_not_known_is_found_out_or_not_needed(cache: ModelCache, server: FileServer, path: str) -> None:
    data = server.add("a")
    assert not fetch(cache, download(server, path, "a", nbytes=None)).errors
    assert cache.path(digest_of(data)).read_bytes() == data


def test_wrong_bytes_are_removed_and_the_hash_is_named(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a")
    wrong = digest_of(bytes(byte ^ 1 for byte in data))
    error = fetch(cache, download(server, "wrong", "a")).errors["a"]
    assert isinstance(error, CorruptData)
    expected = f"{server.url}/wrong/a has sha256 {wrong}, expected {digest_of(data)}. The file was removed; correct the spec or the source."
    assert str(error) == expected
    assert names(cache) == []


@pytest.mark.parametrize("path, nbytes, what", [("long", 300_000, "more"), ("plain", 300_007, "only 300000"), ("plain", 299_000, "more")])
def test_a_wrong_size_is_named(cache: ModelCache, server: FileServer, path: str, nbytes: int, what: str) -> None:
    server.add("a")
    error = fetch(cache, download(server, path, "a", nbytes=nbytes)).errors["a"]
    assert str(error) == f"{server.url}/{path}/a sent {what} bytes, expected {nbytes}. Correct the size in the spec, or the source."
    assert names(cache) == []


def test_the_next_source_continues_where_the_last_one_ended(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a")
    urls = [f"{server.url}/status/404/a", f"{server.url}/wrong/a", f"{server.url}/plain/a?token=secret"]
    assert not fetch(cache, Download("a", urls, digest_of(data), len(data))).errors
    assert cache.path(digest_of(data)).read_bytes() == data


def test_an_error_has_the_reasons_of_all_sources_and_no_query(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a")
    urls = [f"{server.url}/status/404/a?token=secret", f"{server.url}/status/403/a?token=secret"]
    error = fetch(cache, Download("a", urls, digest_of(data), len(data))).errors["a"]
    assert "404/a does not exist (status 404). Correct the url." in str(error)
    assert "403/a refused the request with status 403." in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    "path, error",
    [("status/404", MissingFile), ("status/401", AccessDenied), ("status/503", EndpointUnreachable), ("status/200", EndpointUnreachable)],
)
def test_a_status_is_an_error_of_its_kind(cache: ModelCache, server: FileServer, path: str, error: type[YggdrasillError]) -> None:
    server.add("a")
    found = fetch(cache, download(server, path, "a")).errors["a"]
    assert isinstance(found, (error, CorruptData))


def test_one_failure_does_not_stop_the_others(cache: ModelCache, server: FileServer) -> None:
    for name in "abc":
        server.add(name)
    found = fetch(cache, download(server, "plain", "a"), download(server, "status/404", "b"), download(server, "plain", "c"), parallel=1)
    assert sorted(found.hashes) == ["a", "c"]
    assert list(found.errors) == ["b"]


def test_a_silent_server_is_given_up_and_what_arrived_is_kept(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a")
    error = fetch(cache, download(server, "gate", "a"), silence=0.3, retry_policy=RetryPolicy(0.2, 0.2)).errors["a"]
    assert str(error) == f"{server.url}/gate/a sent nothing for too long. Check the url and the network."
    assert names(cache) == [f"{digest_of(data)}.part"]
    server.requests.clear()
    assert not fetch(cache, download(server, "plain", "a")).errors
    assert [headers["range"] for _, headers in server.requests] == ["bytes=150000-"]


def test_no_network_is_an_error_that_names_the_url(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a")
    error = fetch(cache, Download("a", ["http://127.0.0.1:9/a"], digest_of(data), len(data))).errors["a"]
    assert str(error) == "http://127.0.0.1:9/a cannot be reached (ClientConnectorError). Check the url and the network."


def test_redirects_are_followed_a_few_times(cache: ModelCache, server: FileServer) -> None:
    server.add("a")
    assert not fetch(cache, download(server, "to/" * 10 + "plain", "a")).errors
    server.add("b")
    error = fetch(cache, download(server, "to/" * 11 + "plain", "b")).errors["b"]
    assert "redirects more than 10 times. Try another source." in str(error)


def test_a_damaged_part_of_an_earlier_process_is_fetched_again(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a")
    cache.folder.mkdir(parents=True)
    for left in (bytes(1000), bytes(len(data)), bytes(len(data) + 5), data):
        part = cache.folder / f"{digest_of(data)}.part"
        part.write_bytes(left)
        assert not fetch(cache, download(server, "plain", "a")).errors
        assert cache.path(digest_of(data)).read_bytes() == data
        cache.remove(digest_of(data))


FETCHING = """
import asyncio, sys
from pathlib import Path
from yggdrasill.version_specs.cache import ModelCache
from yggdrasill.version_specs.fetch import Download, Fetcher
from yggdrasill.version_specs.sources import SourcePool

async def main(root, url, digest, nbytes):
    async with SourcePool(allow_private=True) as pool:
        with Fetcher(ModelCache(Path(root)), pool) as fetcher:
            found = await fetcher.fetch_all([Download("a", [url], digest, int(nbytes))])
            print(found.errors or "fetched", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def fetching(cache: ModelCache, wanted: Download, **settings: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCHING, str(cache.root), wanted.urls[0], str(wanted.sha256), str(wanted.nbytes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **settings)


def test_a_process_killed_in_mid_download_is_continued_by_the_next(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a", 6_000_000)
    with fetching(cache, download(server, "gate", "a")) as process:
        assert server.gated.wait(30)
        while not (cache.part_size(digest_of(data)) or 0) > 1_000_000:
            assert process.poll() is None
        process.kill()
        process.wait()
    left = cache.part_size(digest_of(data))
    assert left is not None
    assert 0 < left < len(data)
    server.requests.clear()
    assert not fetch(cache, download(server, "plain", "a")).errors
    assert [headers["range"] for _, headers in server.requests] == [f"bytes={left}-"]
    assert cache.path(digest_of(data)).read_bytes() == data
    assert names(cache) == [digest_of(data)]


def test_two_processes_on_one_cache_fetch_a_file_once(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a", 3_000_000)
    wanted = download(server, "gate", "a")
    with fetching(cache, wanted) as first:
        assert server.gated.wait(30)
        with fetching(cache, wanted) as second:
            try:
                second.wait(1.0)
            except subprocess.TimeoutExpired:
                server.gate.set()
            assert [process.communicate(timeout=30)[0] for process in (first, second)] == ["fetched\n"] * 2
    assert server.paths() == ["/gate/a"]
    assert names(cache) == [digest_of(data)]


def test_another_process_that_is_stuck_is_not_waited_for(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a")
    stuck = cache.open_part(digest_of(data))
    assert stuck is not None
    assert not fetch(cache, download(server, "plain", "a"), stalled=0.3).errors
    assert cache.path(digest_of(data)).read_bytes() == data
    stuck.discard()


def small_files() -> None:
    """Bound the size of files like a full disk: the system refuses the write in the middle."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))


def test_a_disk_that_is_full_in_the_middle_keeps_nothing_half_written(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a", 6_000_000)
    with fetching(cache, download(server, "plain", "a"), preexec_fn=small_files) as process:
        output = process.communicate(timeout=30)[0]
    assert "StorageFailed" in output
    assert (
        f"{digest_of(data)}.part': the disk is full. What was fetched of it is removed. Free space, or set COMFY_CACHE_ROOT"
        in output.replace("\\", "")
    )
    assert names(cache) == []


def test_a_full_disk_stops_the_other_downloads(cache: ModelCache, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from yggdrasill.version_specs import fetch as module

    for name in "abcdef":
        server.add(name, 3_000_000)

    def full(receiver: Any) -> None:
        raise StorageFailed("the disk is full", full=True, errno=errno.ENOSPC)

    monkeypatch.setattr(module._Receiver, "_flush", full)
    found = fetch(cache, *(download(server, "plain", name) for name in server.files), parallel=2)
    assert sorted(found.errors) == list("abcdef")
    assert all(isinstance(error, StorageFailed) for error in found.errors.values())
    assert names(cache) == []
    assert len(server.requests) <= 4


def test_a_cancelled_fetch_keeps_what_arrived(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a", 6_000_000)

    async def run() -> None:
        async with SourcePool(allow_private=True) as pool:
            with Fetcher(cache, pool) as fetcher:
                task = asyncio.ensure_future(fetcher.fetch_all([download(server, "gate", "a")]))
                await asyncio.to_thread(until, lambda: (cache.part_size(digest_of(data)) or 0) > 1_000_000)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    asyncio.run(run())
    assert names(cache) == [f"{digest_of(data)}.part"]
    part = (cache.folder / f"{digest_of(data)}.part").read_bytes()
    assert data.startswith(part)
    assert len(part) > 1_000_000


def test_a_file_without_a_known_hash_is_named_by_the_one_it_has(cache: ModelCache, server: FileServer) -> None:
    data = server.add("a")
    found = fetch(cache, download(server, "cut", "a", sha256=None, nbytes=None))
    assert found.hashes == {"a": digest_of(data)}
    assert names(cache) == [digest_of(data)]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, server: FileServer) -> None:
    server.add("a")
    (tmp_path / "cache").write_bytes(b"")
    error = fetch(ModelCache(tmp_path / "cache"), download(server, "plain", "a")).errors["a"]
    assert isinstance(error, StorageFailed)
    assert str(tmp_path / "cache") in str(error)
    assert (tmp_path / "cache").stat().st_size == 0
