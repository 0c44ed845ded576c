"""The servers of the conformance suite, and the report it writes."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samples.comfy import Installation, Server, Servers, find_installation, make_base_directory
from samples.conformance.core_table import frontend_of, write_core
from samples.conformance.lab import Lab
from samples.conformance.page import write_page
from samples.conformance.placing_report import PlacingReport
from samples.conformance.report import Report
from samples.conformance.template_report import TemplateReport
from samples.conformance.templates import Template, captured
from samples.editor import find_browser, started_browser

_REPORT = Report()
_PLACING = PlacingReport()
_TEMPLATES = TemplateReport()
_OPTION, _VERSIONS = "--conformance-report", "--versions-report"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(_OPTION, metavar="FILE", help="write what the conformance suite found; then a test that is skipped is a failure")
    parser.addoption(_VERSIONS, metavar="FILE", help="write the row of this ComfyUI version into the table of this page")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the report if requested. A suite that skipped a test, or ran none, fails."""
    path = session.config.getoption(_OPTION, None)
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if path is None or terminal is None:
        return
    skipped = len(terminal.stats.get("skipped", ()))
    sections = {"workflows": _REPORT.facts(), "placing": _PLACING.facts(), "templates": _TEMPLATES.facts()}
    found = {name: facts for name, facts in sections.items() if facts is not None}
    if skipped or not found:
        shown = ", ".join(found) or "nothing"
        terminal.write_line(f"NOT SHOWN: {skipped} tests of the conformance suite were skipped; {shown} was run", red=True)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
    date = datetime.datetime.now(tz=datetime.timezone.utc).date()
    if found:
        write_page(Path(path), found, date)
    table, installation = session.config.getoption(_VERSIONS, None), find_installation()
    if table is not None and installation is not None and "workflows" in found:
        counts = {kind: len(terminal.stats.get(kind, ())) for kind in ("passed", "failed", "error", "skipped")}
        tests = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        write_core(Path(table), found, tests, frontend_of(installation), date.isoformat())


@pytest.fixture(scope="session")
def report() -> Report:
    """The results of the suite so far."""
    return _REPORT


@pytest.fixture(scope="session")
def placing_report() -> PlacingReport:
    """The results for placed parts so far."""
    return _PLACING


@pytest.fixture(scope="session")
def template_report() -> TemplateReport:
    """The counts for templates so far."""
    return _TEMPLATES


@pytest.fixture(scope="session")
def lab(servers: Servers, tmp_path_factory: pytest.TempPathFactory, report: Report) -> Iterator[Lab]:
    """The servers that workflows run on, started on demand."""
    made = Lab(servers, tmp_path_factory.mktemp("lab"))
    yield made
    if report.entries:
        report.versions = made.versions


@pytest.fixture(scope="session")
def validating(servers: Servers) -> Server:
    """A server with every class of ComfyUI, including API nodes, that validates prompts."""
    base = make_base_directory(servers.folder / "validating")
    shutil.copy(Path(__file__).parent.parent / "validating_for_tests.py", base / "custom_nodes")
    return servers.start(api_nodes=True, base=base)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser that is closed before the next file: while it is driven, no test can have its own event loop."""
    binary = find_browser()
    if binary is None:
        pytest.skip("NO BROWSER FOUND, SO THE TEMPLATES ARE NOT TESTED: install chromium (or set CHROMIUM), and 'pip install playwright'")
    with started_browser(binary, tmp_path_factory.mktemp("profile")) as context:
        yield context


@pytest.fixture(scope="module")
def templates(validating: Server, installation: Installation, browser: Any, pytestconfig: pytest.Config) -> list[Template]:
    """ComfyUI's official templates as prompts of its editor, stored in pytest's cache."""
    assert pytestconfig.cache is not None
    return captured(validating, installation, browser.new_page(), pytestconfig.cache.mkdir("templates"))
