"""What the tests of equivalence share: three endpoints, started once, and a count of the cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from samples.fleet import Fleet, open_fleet
from samples.tally import TALLY
from yggdrasill.remote import EndpointRegistry


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with open_fleet(tmp_path_factory.mktemp("fleet")) as opened:
        yield opened


@pytest.fixture(scope="session")
def shared_registry(fleet: Fleet) -> EndpointRegistry:
    """One registry for all invented layouts, so that connections are opened once."""
    return fleet.registry()


@pytest.fixture(autouse=True, scope="module")
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY:
        terminalreporter.write_line("cases of equivalence: " + ", ".join(f"{count} {name}" for name, count in TALLY.most_common()))
