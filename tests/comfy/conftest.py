"""Fixtures that find a real ComfyUI and start servers of it, each with its own base directory and port."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from samples.comfy import Installation, Server, Servers, find_installation
from samples.editor import find_browser, started_browser


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "installation" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.comfy)
            item.add_marker(pytest.mark.timeout(300))  # one test waits for the servers that the next ones find running
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything must be shown (`make conformance`), a skip is a failure."""
    report = yield
    if report.skipped and os.environ.get("YGGDRASILL_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and nothing may be skipped here: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The ComfyUI to test with; without one the test is skipped and says how to name one."""
    found = find_installation()
    if found is None:
        pytest.skip(
            "NO COMFYUI FOUND, SO THIS IS NOT TESTED: set COMFYUI_PATH to its checkout and COMFYUI_PYTHON to the Python that runs it"
        )
    return found


@pytest.fixture(scope="session")
def servers(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Starts servers: ``servers.shared(2)`` are reused by all tests, ``servers.start("--flag")`` is one of your own."""
    started = Servers(installation, tmp_path_factory.mktemp("comfy"))
    yield started
    started.stop()


@pytest.fixture
def server(servers: Servers) -> Server:
    """The first of the shared servers."""
    return servers.shared()[0]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real browser; without one the test is skipped and says what to install."""
    binary = find_browser()
    if binary is None:
        pytest.skip("NO BROWSER FOUND, SO THE EDITOR IS NOT TESTED: install chromium (or set CHROMIUM), and 'pip install playwright'")
    profile = tmp_path_factory.mktemp("profile")
    with started_browser(binary, profile) as context:
        yield context
    shutil.rmtree(profile, ignore_errors=True)
