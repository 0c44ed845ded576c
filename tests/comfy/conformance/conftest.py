"""The servers of the conformance suite, and the report it writes."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest

from samples.comfy import Servers
from samples.conformance.lab import Lab
from samples.conformance.report import Report

_REPORT = Report()
_OPTION = "--conformance-report"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(_OPTION, metavar="FILE", help="write what the conformance suite found; then a test that is skipped is a failure")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the report if it was asked for. A suite that skipped something, or ran nothing, has shown nothing."""
    path = session.config.getoption(_OPTION, None)
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if path is None or terminal is None:
        return
    skipped = len(terminal.stats.get("skipped", ()))
    if skipped or not _REPORT.entries:
        terminal.write_line(
            f"NOT SHOWN: {skipped} tests of the conformance suite were skipped, {len(_REPORT.entries)} workflows were run", red=True
        )
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
    if _REPORT.entries:
        _REPORT.write(Path(path), datetime.datetime.now(tz=datetime.timezone.utc).date())


@pytest.fixture(scope="session")
def report() -> Report:
    """What the suite found so far."""
    return _REPORT


@pytest.fixture(scope="session")
def lab(servers: Servers, tmp_path_factory: pytest.TempPathFactory, report: Report) -> Iterator[Lab]:
    """The servers that workflows run on, started when they are needed."""
    made = Lab(servers, tmp_path_factory.mktemp("lab"))
    yield made
    if report.entries:
        report.versions = made.versions
