"""Fixtures: two ComfyUI servers with each other in their registries, and a browser that shows the editor of the first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from samples.comfy import Installation, Server, Servers
from samples.comfy_graphs import Caller, know
from samples.editor import Editor


@dataclass(frozen=True)
class Pair:
    """The server whose editor is open, and the one in its registry as ``studio``; the endpoint ``closed`` refuses connections."""

    here: Server
    there: Server

    @property
    def studio(self) -> Caller:
        """A client of the studio that deploys graphs."""
        return Caller(self.there)


@pytest.fixture(scope="session")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder whose files a web server serves, and its URL; the studio's owner allows it as a source of models."""
    folder = tmp_path_factory.mktemp("model_server")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def pair(servers: Servers, installation: Installation, tmp_path_factory: pytest.TempPathFactory, model_server: tuple[Path, str]) -> Pair:
    """The two servers; the first has previews enabled, the second has a small model."""
    base = tmp_path_factory.mktemp("studio")
    settings = base / "user" / "yggdrasill" / "settings.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"model_sources: ['{model_server[1]}']\n", encoding="utf-8")
    written = installation.run(Path(__file__).parent.parent / "checkpoint.py", str(base / "models"))
    assert written.returncode == 0, written.stderr
    there = servers.start(base=base)
    here = servers.start("--preview-method", "latent2rgb")
    know(here, {"studio": there})
    file = here.base / "user" / "yggdrasill" / "endpoints.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("graphs:", "  closed: {url: 'http://127.0.0.1:9'}\ngraphs:", 1), encoding="utf-8")
    return Pair(here, there)


@pytest.fixture(scope="session")
def opened(browser: Any, pair: Pair) -> Editor:
    """The first server's editor, loaded once."""
    return Editor(browser.new_page(), pair.here.url).open()


@pytest.fixture
def editor(opened: Editor) -> Editor:
    """The first server's editor with an empty canvas, without open dialogs of earlier tests."""
    # a page behind another one draws once a second, and what it has not drawn cannot be clicked
    opened.page.bring_to_front()
    opened.page.keyboard.press("Escape")
    panel = opened.page.get_by_test_id("properties-panel")
    if panel.is_visible():
        panel.get_by_label("Toggle properties panel").click()
    return opened.empty()


@pytest.fixture
def registry(pair: Pair) -> Iterator[Path]:
    """The file of the first server's registry; restored afterwards."""
    file = pair.here.base / "user" / "yggdrasill" / "endpoints.yaml"
    before = file.read_text(encoding="utf-8")
    yield file
    file.write_text(before, encoding="utf-8")


@pytest.fixture
def placements(pair: Pair, registry: Path) -> Iterator[Path]:
    """The file with the first server's placements of workflows, removed before and afterwards; the registry is restored."""
    file = pair.here.base / "user" / "yggdrasill" / "placements.json"
    file.unlink(missing_ok=True)
    yield file
    file.unlink(missing_ok=True)


@pytest.fixture
def tab(editor: Editor, placements: Path) -> Iterator[Any]:
    """The open tab of the sidebar."""
    editor.page.locator(".yggdrasill-tab-button").click()
    yield editor.page.locator(".ygg-tab")
    editor.page.keyboard.press("Escape")
    editor.page.locator(".yggdrasill-tab-button").click()
