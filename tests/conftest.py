"""What all tests share: this checkout under its name, the defaults of hypothesis, the scan for secrets, and skips that fail.

Examples of hypothesis have no time limit: a machine that pauses for seconds would fail tests of other things.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import checkout  # noqa: F401 - before anything imports yggdrasill
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


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
