"""Any sequence of submissions, lost answers, cancels, kills and restarts leaves one result per key, nothing doubled and nothing lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from samples.http_client import until
from samples.job_model import GRAPHS, Call, ModelledEndpoint

#: Two keys of each of two callers.
PLACES = st.integers(0, 3)
CALLERS = st.integers(0, 1)
#: Graph, size and whether the run is held, of the first call of each place.
FIRST = (("counted", False, False), ("keeper", False, True), ("slow", True, False), ("counted", True, True))
COMMON = settings(
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
SHORT = settings(COMMON, max_examples=10, stateful_step_count=30)
LONG = settings(COMMON, max_examples=200, stateful_step_count=50)


class Jobs(RuleBasedStateMachine):
    """Four keys at a time on one endpoint, which is restarted at most once per sequence."""

    endpoint: ClassVar[ModelledEndpoint]
    max_restarts = max_fills = 1

    def __init__(self) -> None:
        super().__init__()
        if self.endpoint.failure is not None:
            raise self.endpoint.failure
        self.places: list[Call | None] = [None] * 4
        self.restarts = self.fills = 0

    def call(self, place: int) -> Call:
        """Return the call of a place; a new one if it has none."""
        found = self.places[place]
        if found is None:
            graph_id, large, held = FIRST[place]
            found = self.places[place] = self.endpoint.new_call(graph_id, large=large, held=held)
        return found

    @rule(place=PLACES, graph_id=st.sampled_from(sorted(GRAPHS)), large=st.booleans(), held=st.booleans())
    def take_a_new_key(self, place: int, graph_id: str, large: bool, held: bool) -> None:
        self.places[place] = self.endpoint.new_call(graph_id, large=large, held=held)

    @rule(place=PLACES, by=CALLERS, uploaded=st.booleans())
    def submit(self, place: int, by: int, uploaded: bool) -> None:
        if uploaded:
            self.endpoint.upload(self.call(place), by)
        self.endpoint.submit(self.call(place), by)

    @rule(place=PLACES, by=CALLERS, share=st.sampled_from([1.0, 1.0, 0.5]), pause=st.sampled_from([0.0, 0.02]))
    def submit_and_lose_the_answer(self, place: int, by: int, share: float, pause: float) -> None:
        self.endpoint.submit_and_leave(self.call(place), by, share=share, pause=pause)

    @rule(place=PLACES)
    def submit_from_both_callers_at_once(self, place: int) -> None:
        self.endpoint.submit_together(self.call(place))

    @rule(place=PLACES, by=CALLERS)
    def submit_another_body(self, place: int, by: int) -> None:
        if self.call(place).job_id is not None:
            self.endpoint.submit_another_body(self.call(place), by)

    @rule(place=PLACES, by=CALLERS)
    def cancel_by_id(self, place: int, by: int) -> None:
        if self.call(place).job_id is not None:
            self.endpoint.cancel(self.call(place), by, by_key=False)

    @rule(place=PLACES, by=CALLERS)
    def cancel_by_key(self, place: int, by: int) -> None:
        self.endpoint.cancel(self.call(place), by, by_key=True)

    @rule(place=PLACES)
    def let_the_run_end(self, place: int) -> None:
        self.call(place).journal.open()

    @rule(place=PLACES, by=CALLERS)
    def wait(self, place: int, by: int) -> None:
        for call in self.endpoint.calls:
            call.journal.open()
        if self.call(place).acknowledged:
            self.endpoint.result(self.call(place), by, wait=15.0)

    @rule(place=PLACES, by=CALLERS)
    def look_at_the_result(self, place: int, by: int) -> None:
        if self.call(place).acknowledged:
            self.endpoint.result(self.call(place), by)

    @rule(place=PLACES, by=CALLERS, uploaded=st.booleans())
    def let_the_inputs_be_checked(self, place: int, by: int, uploaded: bool) -> None:
        if self.call(place).job_id is not None:
            if uploaded:
                self.endpoint.upload(self.call(place), by)
            self.endpoint.check_inputs(self.call(place), by)

    @rule(place=PLACES, by=CALLERS)
    def look_up_the_key(self, place: int, by: int) -> None:
        self.endpoint.look_up(self.call(place), by)

    @precondition(lambda self: self.fills < self.max_fills)
    @rule()
    def fill_the_room_for_outputs(self) -> None:
        self.fills += 1
        for call in self.endpoint.calls:
            call.journal.open()
        self.endpoint.fill()

    @precondition(lambda self: self.restarts < self.max_restarts)
    @rule(times=st.sampled_from([1, 1, 2]))
    def kill(self, times: int) -> None:
        """The second kill meets jobs that are staged after the first."""
        self.restarts += 1
        for _ in range(times):
            self.endpoint.kill()

    @precondition(lambda self: self.restarts < self.max_restarts)
    @rule()
    def stop_and_start(self) -> None:
        self.restarts += 1
        self.endpoint.stop()

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.endpoint.check()

    def teardown(self) -> None:
        if self.endpoint.failure is None:
            self.endpoint.finish()


def run(endpoint: ModelledEndpoint, chosen: settings) -> None:
    """Run sequences, and raise the first error: a real process does not repeat a sequence exactly."""
    try:
        run_state_machine_as_test(type("JobsOfAnEndpoint", (Jobs,), {"endpoint": endpoint}), settings=chosen)
    finally:
        if endpoint.failure is not None:
            raise endpoint.failure


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelledEndpoint]:
    """Return one process for all sequences; each sequence has keys of its own."""
    endpoint = ModelledEndpoint(tmp_path_factory.mktemp("modelled"))
    yield endpoint
    endpoint.close()


@pytest.fixture
def endpoint(process: ModelledEndpoint) -> ModelledEndpoint:
    """Return that process without the calls of other tests."""
    process.begin()
    return process


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_jobs_behave_as_the_model_says(endpoint: ModelledEndpoint) -> None:
    run(endpoint, SHORT)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_jobs_behave_as_the_model_says_for_ten_thousand_steps(endpoint: ModelledEndpoint) -> None:
    run(endpoint, LONG)


@pytest.mark.timeout(300)
def test_a_kill_in_every_state_loses_and_doubles_nothing(endpoint: ModelledEndpoint) -> None:
    calls = {
        name: endpoint.new_call(graph_id, large=large, held=held)
        for name, graph_id, large, held in (
            ("running", "counted", False, True),
            ("running large", "slow", True, True),
            ("queued", "counted", False, False),
            ("queued large", "slow", True, False),
            ("queued keeper", "keeper", False, False),
            ("waiting", "counted", True, False),
            ("waiting slow", "slow", True, True),
            ("lost", "slow", False, False),
            ("cancelled", "counted", False, False),
        )
    }
    endpoint.cancel(calls["cancelled"], 0, by_key=True)
    for number, (name, call) in enumerate(calls.items()):
        if not name.startswith("waiting"):
            endpoint.upload(call, number % 2)
        if name == "lost":
            endpoint.submit_and_leave(call, 1, share=1.0, pause=0.05)
        else:
            endpoint.submit(call, number % 2)
        if name.startswith("running"):
            until(lambda: call.journal.begun)  # noqa: B023 - called before the next iteration
    endpoint.check()
    # the second kill meets jobs whose graph is being built
    endpoint.kill()
    endpoint.kill()
    endpoint.check()
    for name in ("waiting", "waiting slow"):
        endpoint.upload(calls[name], 1)
        endpoint.submit(calls[name], 1)
    for call in calls.values():
        call.journal.open()
    for name, call in calls.items():
        endpoint.submit(call, 0, wait=15.0)
        assert call.status == ("CANCELLED" if name == "cancelled" else "COMPLETED")
    endpoint.check()
    assert calls["cancelled"].journal.begun == 0
    assert calls["running"].journal.ended == calls["running large"].journal.ended == 1
    endpoint.finish()


def test_a_running_job_that_keeps_state_fails_after_a_kill(endpoint: ModelledEndpoint) -> None:
    call = endpoint.new_call("keeper", large=False, held=True)
    endpoint.submit(call, 0)
    until(lambda: call.journal.begun)
    endpoint.kill()
    call.journal.open()
    endpoint.submit(call, 1, wait=15.0)
    assert (call.status, call.journal.begun, call.journal.ended) == ("FAILED", 1, 0)
    endpoint.finish()


@pytest.mark.parametrize("by_key", [True, False])
def test_a_job_that_was_cancelled_while_it_ran_is_not_run_again_after_a_kill(endpoint: ModelledEndpoint, by_key: bool) -> None:
    call = endpoint.new_call("deaf", large=False, held=True)
    endpoint.submit(call, 1)
    until(lambda: call.journal.begun)
    endpoint.cancel(call, 1, by_key=by_key)
    assert not call.is_final
    endpoint.kill()
    call.journal.open()
    endpoint.submit(call, 1, wait=15.0)
    assert (call.status, call.journal.begun, call.journal.ended) == ("CANCELLED", 1, 0)
    endpoint.finish()


def test_a_job_that_waits_for_inputs_runs_after_a_kill_when_they_arrive(endpoint: ModelledEndpoint) -> None:
    call = endpoint.new_call("counted", large=True, held=False)
    endpoint.submit(call, 1, wait=15.0)
    assert call.status == "WAITING_INPUTS"
    endpoint.check_inputs(call, 1)
    endpoint.kill()

    def waits() -> bool:
        endpoint.look_up(call, 0)
        return call.status == "WAITING_INPUTS"

    until(waits)
    endpoint.upload(call, 1)
    endpoint.check_inputs(call, 1)
    endpoint.result(call, 1, wait=15.0)
    assert (call.status, call.journal.begun) == ("COMPLETED", 1)
    endpoint.check_inputs(call, 1)
    endpoint.finish()
