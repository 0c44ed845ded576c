"""Models in an S3 bucket, served by moto. Skipped where obstore or moto's server is not installed."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from samples.endpoints import free_port
from samples.file_server import data_of, digest_of
from yggdrasill.errors import AccessDenied, EndpointUnreachable, MissingFile
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.version_specs.cache import ModelCache
from yggdrasill.version_specs.fetch import Download, Fetched, Fetcher
from yggdrasill.version_specs.sources import SourcePool

pytest.importorskip("obstore", reason="the extra 'stores' is not installed")

DATA = data_of("a", 3_000_000)
SHA = digest_of(DATA)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """Start moto's server with a bucket and a model in it."""
    program = shutil.which("moto_server") or shutil.which("moto_server", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("moto's server is not installed: pip install 'moto[server]'")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
                    break
                except OSError:
                    assert time.monotonic() < end
                    assert process.poll() is None
                    time.sleep(0.1)
            yield url
        finally:
            process.kill()


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a bucket's url, with credentials in the environment."""
    import obstore
    from obstore.store import from_url

    settings = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret-key", "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": moto}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{moto}/models", method="PUT"), timeout=20).close()
    obstore.put(from_url("s3://models", client_options={"allow_http": True}), "loras/a.safetensors", DATA)
    return "s3://models"


def fetch(cache: ModelCache, url: str, nbytes: int | None = len(DATA)) -> Fetched:
    async def run() -> Fetched:
        async with SourcePool(allow_private=False) as pool:
            with Fetcher(cache, pool, retry_policy=RetryPolicy(0.2, 1.0)) as fetcher:
                return await fetcher.fetch_all([Download("a", [url], SHA, nbytes)])

    return asyncio.run(run())


@pytest.mark.parametrize("nbytes", [len(DATA), None])
def test_a_model_is_fetched_from_a_bucket(bucket: str, tmp_path: Path, nbytes: int | None) -> None:
    cache = ModelCache(tmp_path)
    assert not fetch(cache, f"{bucket}/loras/a.safetensors", nbytes).errors
    assert cache.path(SHA).read_bytes() == DATA


def test_a_fetch_from_a_bucket_is_continued(bucket: str, tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    cache.folder.mkdir(parents=True)
    (cache.folder / f"{SHA}.part").write_bytes(DATA[:1_234_567])
    assert not fetch(cache, f"{bucket}/loras/a.safetensors").errors
    assert cache.path(SHA).read_bytes() == DATA


def test_an_object_that_does_not_exist_is_named(bucket: str, tmp_path: Path) -> None:
    error = fetch(ModelCache(tmp_path), f"{bucket}/loras/b.safetensors").errors["a"]
    assert isinstance(error, MissingFile)
    assert str(error) == "s3://models/loras/b.safetensors does not exist. Correct the url."


def test_no_answer_names_the_url_and_no_secret(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    error = fetch(ModelCache(tmp_path), f"{bucket}/loras/a.safetensors").errors["a"]
    assert isinstance(error, (EndpointUnreachable, AccessDenied))
    assert "s3://models/loras/a.safetensors" in str(error)
    assert "secret-key" not in str(error)
