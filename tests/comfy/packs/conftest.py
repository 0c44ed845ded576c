"""The servers of the packs suite, and the section that it writes to a page."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest

from samples.comfy import Installation
from samples.packs.checkouts import find_packs, packs_installation
from samples.packs.filling import Workbench
from samples.packs.lab import PacksLab
from samples.packs.report import PacksReport
from samples.page_sections import write_section

_REPORT = PacksReport()
_OPTION, _RECORDS = "--packs-report", "--packs-records"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(_OPTION, metavar="FILE", help="write the table of the packs suite into this page")
    parser.addoption(_RECORDS, metavar="FILE", help="append each result of the packs suite as a line of JSON")


def pytest_configure(config: pytest.Config) -> None:
    records = config.getoption(_RECORDS, None)
    _REPORT.stream = Path(records) if records else None


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table if requested. A suite that ran nothing fails."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    page = session.config.getoption(_OPTION, None)
    if page is None or terminal is None:
        return
    if not _REPORT.records:
        terminal.write_line("NOT SHOWN: no test of the packs suite was run", red=True)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        return
    date = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    write_section(Path(page), "packs", "make packs", _REPORT.lines(date))


@pytest.fixture(scope="session")
def report() -> PacksReport:
    """The results of the suite so far."""
    return _REPORT


@pytest.fixture(scope="session")
def packs_lab(installation: Installation, tmp_path_factory: pytest.TempPathFactory, report: PacksReport) -> Iterator[PacksLab]:
    """Three running servers with the packs; without packs the test is skipped with a message that says how to name them."""
    packs = find_packs()
    if not packs:
        pytest.skip("NO NODE PACKS FOUND, SO THEY ARE NOT TESTED: set COMFYUI_PACKS to a folder with their checkouts")
    lab = PacksLab(packs_installation(installation), packs, tmp_path_factory.mktemp("packs"))
    report.comfyui = lab.version
    for pack in packs:
        report.versions[pack.name] = pack.version
        error = lab.import_error(pack)
        if error is not None:
            report.failed[pack.name] = error
    yield lab
    lab.stop()


@pytest.fixture(scope="session")
def bench(packs_lab: PacksLab) -> Workbench:
    """The classes of the servers."""
    return Workbench(packs_lab.info)
