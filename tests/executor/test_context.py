"""The run context: seeds, paths, progress, what a nested run inherits."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch

from samples.graphs import bits, graph_of
from yggdrasill.errors import Cancelled
from yggdrasill.executor import CancelToken, Host, RunContext, current_run, enter_run
from yggdrasill.executor.context import derive_seed, enter_child


def context(seed: int = 1, path: tuple[str, ...] = ("g",), pass_index: int = 0, node: str = "n", call: int = 0) -> RunContext:
    made = RunContext(seed, path, pass_index=pass_index)
    made.node, made.call = node, call
    return made


VARIANTS: list[dict[str, Any]] = [
    {},
    {"seed": 2},
    {"path": ("h",)},
    {"path": ("g", "n"), "node": ""},
    {"path": ()},
    {"pass_index": 1},
    {"node": "m"},
    {"call": 1},
    {"seed": 11, "path": ()},
    {"path": ("gn",), "node": ""},
]


def test_equal_places_give_equal_seeds_and_different_ones_different_seeds() -> None:
    seeds = [context(**variant).derived_seed() for variant in VARIANTS]
    assert seeds == [context(**variant).derived_seed() for variant in VARIANTS]
    assert len(set(seeds)) == len(VARIANTS)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_labels_give_seeds_of_their_own() -> None:
    here = context()
    seeds = [here.derived_seed(*labels) for labels in [(), ("a",), ("b",), ("a", "b"), ("ab",), (1,)]]
    assert len(set(seeds)) == len(seeds)


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert derive_seed(7, ("world", "stage"), 2, 3, "noise") == 4698124536018765517


@pytest.mark.parametrize("first, second", list(itertools.combinations(range(4), 2)))
def test_generators_follow_the_seed(first: int, second: int) -> None:
    def draws(variant: dict[str, Any]) -> tuple[bytes, bytes]:
        here = context(**variant)
        return bits(torch.randn(4, generator=here.generator())), bits(here.rng().standard_normal(4))

    assert draws(VARIANTS[first]) == draws(VARIANTS[first])
    assert all(one != other for one, other in zip(draws(VARIANTS[first]), draws(VARIANTS[second]), strict=True))


def test_a_run_with_a_seed_repeats_itself_and_nodes_and_calls_differ() -> None:
    graph = graph_of(
        {"a": "noise", "b": "noise", "c": "collect"},
        ["c.out -> a.after", "a.noise -> c.sum", "b.noise -> c.dict", "a.noise -> c.dict"],
        ["c.single = x"],
        ["a.noise = a", "b.noise = b"],
    )
    once = graph.run({"x": 1}, seed=5)
    assert bits(graph.run({"x": 1}, seed=5)) == bits(once)
    assert bits(once["a"]) != bits(once["b"])
    assert bits(graph.run({"x": 1}, seed=6)["a"]) != bits(once["a"])
    assert bits(graph.run({"x": 1}, seed=5, num_loop_steps=2)["a"]) != bits(once["a"]), "the second call draws anew"
    assert bits(graph.run({"x": 1})["a"]) != bits(graph.run({"x": 1})["a"]), "without a seed each run has its own"


def test_outside_a_run_there_is_a_context_with_a_seed_of_its_own() -> None:
    assert current_run().path == ()
    assert current_run().seed != current_run().seed


def test_a_nested_run_inherits_what_it_is_not_given() -> None:
    token = CancelToken()
    with enter_run(seed=9, path=("w",), pass_index=4, token=token) as outer:
        outer.node = "s"
        with enter_run() as inner:
            assert (inner.seed, inner.path, inner.pass_index, inner.token) == (9, ("w", "s"), 4, token)
            assert (outer.outermost, inner.outermost) == (True, False)
            inner.node = "n"
            assert inner.place == "w/s/n"
        with enter_run(seed=1, path=("x",), pass_index=0) as other:
            assert (other.seed, other.path, other.pass_index) == (1, ("x",), 0)
        assert current_run() is outer
    assert current_run() is not outer


def test_a_run_that_fails_leaves_no_context_behind() -> None:
    with pytest.raises(ZeroDivisionError), enter_run(seed=1):
        _ = 1 / 0
    assert current_run().seed != 1


def test_a_child_is_entered_by_name_in_any_thread() -> None:
    places = []
    with enter_run(seed=3, path=("w",)) as outer:

        def work() -> None:
            with enter_child(outer, "s"), enter_run() as inner:
                places.append((inner.seed, inner.path))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert places == [(3, ("w", "s"))]


def test_progress_goes_to_the_sink_with_the_place() -> None:
    seen: list[tuple[Any, ...]] = []
    with enter_run(path=("g",), progress=lambda *facts: seen.append(facts)) as here:
        here.node = "n"
        here.progress(1, 4)
        here.progress(2, 4, "half")
    assert seen == [("g/n", 1, 4, None), ("g/n", 2, 4, "half")]
    RunContext(1).progress(1, 1)


def test_outputs_are_published_by_the_outermost_run_only() -> None:
    got: list[tuple[str, object]] = []
    with enter_run(host=Host(emit_output=lambda name, value: got.append((name, value)))), enter_run() as same:
        same.host.emit_output("y", 1)
        with enter_child(same, "node"), enter_run() as nested:
            nested.host.emit_output("z", 2)
    with enter_run() as alone:
        alone.host.emit_output("y", 3)
    assert got == [("y", 1)]


def test_a_cancelled_run_says_where_and_why() -> None:
    here = context()
    here.check_cancelled()
    assert not here.cancelled
    here.token.cancel("no time")
    assert here.cancelled
    with pytest.raises(Cancelled, match="g/n: no time"):
        here.check_cancelled()


def test_the_logger_has_the_name_of_the_place() -> None:
    assert context().logger.name == "yggdrasill.run.g.n"


def test_cancelling_a_token_cancels_those_derived_from_it_and_not_the_other_way_round() -> None:
    token = CancelToken()
    first, second = token.derive(), token.derive()
    below = first.derive()
    first.cancel("one branch")
    assert [t.cancelled for t in (token, first, below, second)] == [False, True, True, False]
    token.cancel("all")
    assert (second.cancelled, second.reason, token.derive().cancelled, token.derive().reason) == (True, "all", True, "all")


def test_runs_nested_in_one_call_are_counted_per_call() -> None:
    with enter_run(seed=1, path=("g",)) as outer:
        paths = []
        for outer.node, outer.call in (("n", 0), ("n", 0), ("n", 1), ("n", 1), ("m", 0), ("n", 0)):
            with enter_run() as nested:
                paths.append(nested.path[-1])
        outer.node, outer.call = "", 0
        for _ in range(2):
            with enter_run() as same:
                paths.append("/".join(same.path))
    assert paths == ["n", "n+1", "n#1", "n#1+1", "m", "n", "g", "g"]


def test_a_branch_is_the_same_run_with_its_own_node_and_token() -> None:
    with enter_run(seed=1, path=("g",)) as outer:
        token = outer.token.derive()
        branch = outer.branch(token)
        branch.node = "n"
        assert (branch.seed, branch.path, branch.outermost, branch.token, outer.node) == (1, ("g",), True, token, "")


def test_the_json_form_holds_what_draws_the_same_numbers_elsewhere() -> None:
    here = context(seed=5, path=("w", "s"), pass_index=2)
    facts = here.to_dict()
    there = RunContext(facts["seed"], tuple(facts["path"]), pass_index=facts["pass_index"])
    there.node = "n"
    assert there.derived_seed() == here.derived_seed()
