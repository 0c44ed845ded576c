"""Fixtures that find a real ComfyUI and start servers of it, each with its own base directory and port."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samples.comfy import ROOT, Installation, Server, Servers, find_installation, make_base_directory
from samples.comfy_graphs import Caller, know
from samples.editor import find_browser, started_browser

_NODES_OF_ONE = """
class Half:
    FUNCTION, CATEGORY, RETURN_TYPES = "act", "tests", ("FLOAT",)
    INPUT_TYPES = classmethod(lambda cls: {{"required": {{"value": ("FLOAT", {{}})}}}})
    act = lambda self, value: (value / 2,)

NODE_CLASS_MAPPINGS = {{"TestOnlyOn_{name}": Half}}
"""
_HABITS = ROOT / "tests" / "samples" / "habits_pack"
_NODES = Path(__file__).with_name("host") / "nodes_for_tests.py"
_FEEDBACK = ROOT / "tests" / "samples" / "feedback_pack.py"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    found = find_installation()
    other = [
        item
        for item in items
        if found is not None and any(not (found.folder / mark.args[0]).exists() for mark in item.iter_markers("comfy_file"))
    ]
    if other:
        config.hook.pytest_deselected(items=other)
        items[:] = [item for item in items if item not in set(other)]
    for item in items:
        if "installation" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.comfy)
            item.add_marker(pytest.mark.timeout(300))  # one test waits for the servers that the next ones find running
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
    # while a browser is open its driver's event loop runs in the main thread, and asyncio.run() is refused there
    items.sort(key=lambda item: "browser" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The ComfyUI to test with; without one the test is skipped with a message that says how to set it."""
    found = find_installation()
    if found is None:
        pytest.skip(
            "NO COMFYUI FOUND, SO THIS IS NOT TESTED: set COMFYUI_PATH to its checkout and COMFYUI_PYTHON to the Python that runs it"
        )
    return found


@pytest.fixture(scope="session")
def servers(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Starts servers: ``servers.shared(2)`` are reused by all tests, ``servers.start("--flag")`` starts a new one."""
    started = Servers(installation, tmp_path_factory.mktemp("comfy"))
    yield started
    started.stop()


@pytest.fixture
def server(servers: Servers) -> Server:
    """The first of the shared servers."""
    return servers.shared()[0]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real browser; without one the test is skipped with a message that says what to install."""
    binary = find_browser()
    if binary is None:
        pytest.skip("NO BROWSER FOUND, SO THE EDITOR IS NOT TESTED: install chromium (or set CHROMIUM), and 'pip install playwright'")
    profile = tmp_path_factory.mktemp("profile")
    with started_browser(binary, profile) as context:
        yield context
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="session")
def pair(servers: Servers) -> tuple[Caller, Caller]:
    """Servers ``a`` and ``b``, with each other in their registries under these names, and each with a node class that the other lacks.

    Tests of many files share them in any order: a test that counts the jobs of a graph or part gives it a name that no other test uses.
    """
    started = []
    for name in ("a", "b"):
        base = make_base_directory(servers.folder / f"pair-{name}")
        shutil.copy(_NODES, base / "custom_nodes" / _NODES.name)
        shutil.copy(_FEEDBACK, base / "custom_nodes" / _FEEDBACK.name)
        shutil.copytree(_HABITS, base / "custom_nodes" / _HABITS.name, ignore=shutil.ignore_patterns("__pycache__"))
        (base / "custom_nodes" / "nodes_of_one.py").write_text(_NODES_OF_ONE.format(name=name), encoding="utf-8")
        started.append(servers.launch(("--cache-lru", "30"), base=base))
    for server in started:
        server.wait_until_ready()
    both: dict[str, Server] = dict(zip("ab", started, strict=True))
    for server in started:
        know(server, both)
    return Caller(started[0]), Caller(started[1])


@pytest.fixture
def a(pair: tuple[Caller, Caller]) -> Iterator[Caller]:
    """The first server; it must be alive and idle when the test ends."""
    yield pair[0]
    pair[0].check_idle()


@pytest.fixture
def b(pair: tuple[Caller, Caller]) -> Iterator[Caller]:
    """The second server, as ``a``."""
    yield pair[1]
    pair[1].check_idle()
