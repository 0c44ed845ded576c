"""Binds this checkout to the name ``yggdrasill``, whatever its folder is called, here and in the processes tests start.

Examples of hypothesis have no time limit: a machine that pauses for seconds would fail tests of other things.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

ROOT = Path(__file__).resolve().parent.parent


def bind_checkout() -> None:
    """Load the root ``__init__.py`` as ``yggdrasill`` unless that name is this checkout already."""
    loaded = sys.modules.get("yggdrasill")
    if loaded is not None and Path(str(loaded.__file__)).resolve() == ROOT / "__init__.py":
        return
    spec = importlib.util.spec_from_file_location("yggdrasill", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["yggdrasill"] = module
    spec.loader.exec_module(module)


def bind_children() -> None:
    """Make started processes find the same checkout, through a link beside it if it is not the installed one."""
    found = importlib.util.find_spec("yggdrasill")
    if found is not None and found.origin is not None and Path(found.origin).resolve() == ROOT / "__init__.py":
        return
    link = ROOT / ".link" / "yggdrasill"
    if not link.exists():
        link.parent.mkdir(exist_ok=True)
        link.symlink_to("..", target_is_directory=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(link.parent), os.environ.get("PYTHONPATH")]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--scan-secrets", action="store_true", help="plant secrets in the environment, and search all that the tests leave behind for them"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--scan-secrets"):
        from samples.secret_scan import SessionScan

        config.pluginmanager.register(SessionScan(), "planted-secrets")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where everything must run (`make conformance`)."""
    report = yield
    if report.skipped and os.environ.get("YGGDRASILL_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and nothing may be skipped here: {report.longrepr}"
    return report


bind_children()
bind_checkout()
