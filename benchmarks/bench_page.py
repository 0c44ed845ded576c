"""The cost of the extension for ComfyUI's page: a real browser opens the editors of a server with and without it, alternately."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.comfy_servers import ROOT, Server, comfy_version, find_installation, open_fleet
from benchmarks.figures import Figure
from benchmarks.timing import in_rounds, median, ratios, seconds
from samples.editor import Editor, find_browser, started_browser

__all__ = ["run"]

ROUNDS = 15
REQUESTS = 3
SCRIPT_BYTES = 100_000
SETTLED_MS = 1500
BARE = "the page without the extension"


def run() -> list[Figure]:
    """Return the page's time, its requests and script."""
    installation, binary = find_installation(), find_browser()
    if installation is None or binary is None:
        why = "it needs a ComfyUI (COMFYUI_PATH, COMFYUI_PYTHON) and a browser (CHROMIUM, and 'pip install playwright')"
        return [Figure.missing("the page until nodes can be added", BARE, why)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, open_fleet(installation, Path(name)) as fleet:
        servers = {"bare": fleet.prepare("bare", ours=False), "with": fleet.prepare("with")}
        fleet.wait()
        with started_browser(binary, Path(name) / "profile") as browser:
            times, requested = _opened(browser, servers)
    ready = {"ours": seconds(median(times["with"])), "bare": seconds(median(times["bare"]))}
    version = f"ComfyUI {comfy_version(installation)}, chromium"
    page = Figure.of("the page until nodes can be added", BARE, ratios(times["with"], times["bare"]), parts=ready, note=version)
    return [page, *_counts(requested)]


def _opened(browser: Any, servers: dict[str, Server]) -> tuple[dict[str, list[float]], dict[str, set[str]]]:
    """Return the seconds until each page was ready, one per round after an untimed one, and the paths that it requested."""
    times: dict[str, list[float]] = {name: [] for name in servers}
    requested: dict[str, set[str]] = {}
    for round_number in (-1, *in_rounds(ROUNDS, "page")):
        for name, server in servers.items():
            page = browser.new_page()
            editor = Editor(page, server.url).open()
            if round_number < 0:
                page.wait_for_timeout(SETTLED_MS)
                paths = (url.removeprefix(server.url).partition("?")[0] for url in editor.requests)
                requested[name] = {path for path in paths if path.startswith("/")}
            else:
                times[name].append(editor.ready_after)
            page.close()
    return times, requested


def _counts(requested: dict[str, set[str]]) -> list[Figure]:
    more = sorted(requested["with"] - requested["bare"])
    script = sum(file.stat().st_size for file in (ROOT / "web" / "start").glob("*.js"))
    whole = sum(file.stat().st_size for file in (ROOT / "web").rglob("*.js"))
    parts = {"more": f"{len(more)} requests", "all": f"{len(requested['with'])}"}
    return [
        Figure.of("additional requests of the page", f"the limit of {REQUESTS}", [len(more) / REQUESTS], at_most=1.0, parts=parts),
        Figure.of(
            "script, including script loaded later",
            f"the limit of {SCRIPT_BYTES // 1000} kB",
            [whole / SCRIPT_BYTES],
            at_most=1.0,
            parts={"with the page": f"{script / 1000:.1f} kB", "total": f"{whole / 1000:.1f} kB"},
        ),
    ]
