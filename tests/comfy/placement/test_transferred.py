"""Values that one part hands to another: a lost one is produced again once, for every node that has it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import pytest

from yggdrasill.errors import EndpointUnreachable
from yggdrasill.server_ext.comfy.placement.placed_call import Plan, Producer, TransferredValue

PLAN = Plan("text", "part", {}, (), (), False)


def producer() -> Producer:
    return Producer(PLAN, {"p0": [1]}, "2")


def again(made: Producer, calls: list[Producer]) -> Mapping[int, list[Any]]:
    """Produce two values anew, as the call of a producer does."""
    calls.append(made)
    fresh = producer()
    return {0: [TransferredValue("new 0", fresh, (0, 0)), TransferredValue("new 1", fresh, (0, 1))], 1: ["not transferred"]}


def test_every_value_of_a_call_is_renewed_at_once() -> None:
    made = producer()
    calls: list[Producer] = []
    values = [TransferredValue(f"old {index}", made, (0, index)) for index in range(2)]
    other = TransferredValue("old", made, (1, 0))
    made.renew({(0, 1): "old 1"}, lambda found: again(found, calls))
    assert [value.value for value in values] == ["new 0", "new 1"]
    assert other.value == "old", "the new call did not transfer it"
    assert calls == [made]


def test_several_nodes_that_miss_a_value_produce_it_once() -> None:
    made = producer()
    calls: list[Producer] = []
    value = TransferredValue("old 0", made, (0, 0))
    threads = [threading.Thread(target=made.renew, args=({(0, 0): "old 0"}, lambda found: again(found, calls))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert value.value == "new 0"
    assert len(calls) == 1
    made.renew({(0, 0): value.value}, lambda found: again(found, calls))
    assert len(calls) == 2, "the new value was lost too"


def test_a_producer_that_fails_leaves_its_values_and_can_be_tried_again() -> None:
    made = producer()
    calls: list[Producer] = []
    value = TransferredValue("old 0", made, (0, 0))

    def fail(found: Producer) -> Mapping[int, list[Any]]:
        raise EndpointUnreachable("down")

    with pytest.raises(EndpointUnreachable):
        made.renew({(0, 0): "old 0"}, fail)
    assert value.value == "old 0"
    made.renew({(0, 0): "old 0"}, lambda found: again(found, calls))
    assert value.value == "new 0"


def test_a_producer_and_its_inputs_end_with_its_values() -> None:
    made = producer()
    values = [TransferredValue(index, made, (0, index)) for index in range(3)]
    weak = weakref.ref(made)
    del made
    assert weak() is not None
    values.clear()
    gc.collect()
    assert weak() is None
