"""What the tests of equivalence share: three endpoints, started once, and a count of the cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from samples.case_counts import CASE_COUNTS
from samples.servers import Servers, open_servers
from yggdrasill.remote import EndpointRegistry


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with open_servers(tmp_path_factory.mktemp("servers")) as opened:
        yield opened


@pytest.fixture(scope="session")
def shared_registry(servers: Servers) -> EndpointRegistry:
    """One registry for all invented layouts, so that connections are opened once."""
    return servers.registry()


@pytest.fixture(autouse=True, scope="module")
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if CASE_COUNTS:
        terminalreporter.write_line("cases of equivalence: " + ", ".join(f"{count} {name}" for name, count in CASE_COUNTS.most_common()))
