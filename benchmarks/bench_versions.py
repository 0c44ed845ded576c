"""Version specs: fetching a model compared with curl, and the verification of models that are present."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from benchmarks.processes import spawn
from benchmarks.timing import interleave, median, ratios, seconds
from yggdrasill.version_specs.cache import ModelCache
from yggdrasill.version_specs.fetch import Download, Fetcher
from yggdrasill.version_specs.model import VersionSpec, spec_from_document
from yggdrasill.version_specs.sources import SourcePool
from yggdrasill.version_specs.verify import verify_version

__all__ = ["run"]

NBYTES = 256 << 20
FETCH_ROUNDS = 9
PRESENT, PRESENT_BYTES = 100, 1 << 20
VERIFY_ROUNDS = 9
LIMIT_SECONDS = 1.0
SLOWDOWN = 1 / 0.9

#: Serves the files of a folder with sendfile, as nginx would.
SERVE = """
import asyncio, sys
from aiohttp import web

async def main():
    app = web.Application()
    app.router.add_static("/", sys.argv[1])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print("url", f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def run() -> list[Figure]:
    """Return all figures of version specs."""
    with tempfile.TemporaryDirectory() as name:
        return [_fetch(Path(name)), _verify(Path(name))]


def _fetch(folder: Path) -> Figure:
    what, beside = f"{NBYTES >> 20} MiB over http on loopback, hashed and flushed to the disk", "curl to a file, neither hashed nor flushed"
    curl = shutil.which("curl")
    if curl is None:
        return Figure.missing(what, beside, "curl is NOT INSTALLED", at_most=SLOWDOWN)
    served, cache = folder / "served", ModelCache(folder / "cache")
    served.mkdir()
    digest = _write_random(served / "model", NBYTES)
    with spawn(["-c", SERVE, str(served)], "url ") as url:
        wanted = Download("model", [f"{url}/model"], digest, NBYTES)

        def ours() -> None:
            asyncio.run(_fetch_once(cache, wanted))

        def by_curl() -> None:
            subprocess.run([curl, "--silent", "--fail", "--output", str(folder / "curl"), wanted.urls[0]], check=True)

        def clean() -> None:
            (folder / "curl").unlink(missing_ok=True)
            cache.remove(digest)

        taken = interleave("fetching", {"ours": ours, "curl": by_curl}, FETCH_ROUNDS, before=clean)
    parts = {name: seconds(median(times)) for name, times in taken.items()}
    return Figure.of(what, beside, ratios(taken["ours"], taken["curl"]), at_most=round(SLOWDOWN, 2), parts=parts)


async def _fetch_once(cache: ModelCache, wanted: Download) -> None:
    async with SourcePool(allow_private=True, environment={}) as pool:
        with Fetcher(cache, pool) as fetcher:
            errors = (await fetcher.fetch_all([wanted])).errors
    if errors:
        raise errors["model"]


def _verify(folder: Path) -> Figure:
    home, root = folder / "ComfyUI", folder / "verified"
    (home / "custom_nodes").mkdir(parents=True)
    cache = ModelCache(root)
    cache.folder.mkdir(parents=True)
    models = []
    for number in range(PRESENT):
        made = folder / "made"
        digest = _write_random(made, PRESENT_BYTES)
        made.rename(cache.path(digest))
        models.append({"type": "loras", "filename": f"{number}.safetensors", "sha256": digest, "source": "local"})
    spec = spec_from_document({"schema": "comfy-build/1", "name": "present", "definition": {"models": models}}, "present")

    def verify() -> None:
        asyncio.run(_verify_once(spec, home, root))

    taken = interleave("verifying", {"verify": verify}, VERIFY_ROUNDS)["verify"]
    parts: dict[str, Any] = {"verification": seconds(median(taken))}
    what = f"verifying {PRESENT} models that are present, their hashes known"
    return Figure.of(what, f"the limit of {seconds(LIMIT_SECONDS)}", [each / LIMIT_SECONDS for each in taken], at_most=1.0, parts=parts)


async def _verify_once(spec: VersionSpec, home: Path, root: Path) -> None:
    report = await verify_version(spec, comfy_home=home, cache=root)
    if len(report.present) + len(report.linked) != PRESENT:
        raise AssertionError(f"only {len(report.present)} of {PRESENT} models are present")


def _write_random(path: Path, nbytes: int) -> str:
    """Write random bytes and return their sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(0, nbytes, 1 << 20):
            block = os.urandom(min(nbytes, 1 << 20))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()
