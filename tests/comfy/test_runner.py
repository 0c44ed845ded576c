"""The order of jobs and the owner's prompts, and the binding of values into prompts, without a ComfyUI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from yggdrasill.errors import InvalidArgument, InvalidConfig, UnknownArtifact
from yggdrasill.executor.context import RunContext
from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.server_ext.comfy.binding import bind_prompt
from yggdrasill.server_ext.comfy.event_throttle import PREVIEW_INTERVAL, EventThrottle
from yggdrasill.server_ext.comfy.job_inputs import JobInputs, content_hash
from yggdrasill.server_ext.comfy.prompt_run import PromptRun
from yggdrasill.server_ext.comfy.runner import QueueRunner
from yggdrasill.server_ext.comfy.settings import ComfySettings
from yggdrasill.values.handles import ArtifactHandle
from yggdrasill.values.stores import MemoryStore
from yggdrasill.values.wire import pack, references

GRAPH = ComfyGraph(
    {
        "1": {"class_type": "YggdrasillGraphInput", "inputs": {"name": "x", "type": "IMAGE", "default": ["5", 0]}},
        "5": {"class_type": "EmptyImage", "inputs": {}},
        "9": {
            "class_type": "YggdrasillGraphOutput",
            "inputs": {"name": "y", "type": "IMAGE", "value": ["1", 0]},
            "_meta": {"title": "out"},
        },
    }
)


def test_front_jobs_pass_an_owners_prompt_at_most_eight_times_and_stay_in_order() -> None:
    runner = QueueRunner("front")
    waiting: list[tuple[float, str]] = [(3.0, "owner-1"), (4.0, "owner-2")]
    for count in range(20):
        place = runner._front_number(waiting, 5.0 + count)
        waiting.append((place, f"job-{count}"))
        runner._runs[f"job-{count}"] = PromptRun(f"job-{count}", GRAPH, RunContext(0))
    order = [name for _, name in sorted(waiting)]
    assert [name for name in order if name.startswith("job")] == [f"job-{count}" for count in range(20)]
    assert order.index("owner-1") == 8
    assert order.index("owner-2") == 9


def test_an_invalid_policy_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="'fifo', 'front'"):
        QueueRunner("last")


def test_a_value_replaces_every_input_of_its_name_and_sinks_name_the_run() -> None:
    prompt = bind_prompt(GRAPH, {"x": "abc"}, "run-1")
    assert prompt["1"] == {"class_type": "YggdrasillValue", "inputs": {"hash": "abc"}}
    assert prompt["9"]["inputs"] == {"port": "y", "type": "IMAGE", "run": "run-1", "value": ["1", 0]}
    assert prompt["9"]["_meta"] == {"title": "out"}
    assert GRAPH.prompt["9"]["class_type"] == "YggdrasillGraphOutput"
    assert bind_prompt(GRAPH, {}, "run-1")["1"] == GRAPH.prompt["1"]


def test_hashes_are_equal_only_for_equal_values() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert content_hash({"samples": tensor}) == content_hash({"samples": tensor.clone()})
    different = [
        {"samples": tensor},
        {"samples": tensor + 1},
        {"samples": tensor.T},
        {"samples": tensor.double()},
        {"other": tensor},
        tensor,
        [tensor],
        (tensor,),
        1,
        1.0,
        True,
    ]
    assert len({content_hash(value) for value in different}) == len(different)


def test_large_and_small_tensors_are_hashed_by_their_bytes() -> None:
    large = torch.zeros(100_000)
    assert content_hash([large, large[:10].clone()]) == content_hash([large.clone(), large[:10].clone()])


def test_a_handle_has_the_hash_of_its_tensor() -> None:
    store, tensor = MemoryStore(), torch.arange(6.0).reshape(2, 3)
    with pack(tensor, store, inline_bytes=0) as packed:
        (ref,) = references(packed.wire)
        assert content_hash([ArtifactHandle(ref, lambda wanted: store.read(wanted.hash))]) == content_hash([tensor])


def test_messages_that_arrived_together_are_forwarded_together() -> None:
    blocks: list[list[str]] = []

    @contextmanager
    def together() -> Iterator[None]:
        blocks.append([])
        yield

    run = PromptRun("p", GRAPH, RunContext(0), lambda kind, facts: blocks[-1].append(f"{kind} {facts.get('node')}"))
    for number in range(3):
        run.hold("executing", {"node": str(number)})
    run.post("success", {})
    run.post("executing", {"node": "late"})
    QueueRunner()._follow(run, together)
    assert blocks == [["executing 0", "executing 1", "executing 2"]]


def test_job_inputs_keep_a_value_while_a_job_needs_it() -> None:
    job_inputs = JobInputs()
    first, second = job_inputs.put([1, 2]), job_inputs.put([1, 2])
    assert first == second
    job_inputs.drop([first])
    assert job_inputs.take(second) == [1, 2]
    job_inputs.drop([second])
    assert len(job_inputs) == 0
    with pytest.raises(UnknownArtifact, match="belongs to a job that has ended"):
        job_inputs.take(first)


@pytest.mark.parametrize(
    "document, said",
    [
        ({"queu": "fifo"}, "'queu'"),
        ({"queue": "lifo"}, "'lifo'"),
        ({"slots": 0}, "an integer of at least 1"),
        ({"peers": "x"}, "list of strings"),
        ({"model_sources": ["huggingface.co"]}, "'huggingface.co'"),
        ({"model_limit": 0}, "number of GiB"),
        ({"patience": -1}, "'patience' must be a number of seconds from 0 on, got -1"),
        ({"first_patience": "2 s"}, "'first_patience' must be a number of seconds"),
        ({"first_patience": float("nan")}, "'first_patience' must be a number of seconds"),
    ],
)
def test_invalid_settings_are_named(document: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        ComfySettings.from_dict(document, "settings.yaml")


def test_previews_are_throttled_and_the_last_one_is_sent() -> None:
    told: list[tuple[str, str]] = []
    run = PromptRun("p", GRAPH, RunContext(0), lambda kind, facts: told.append((kind, facts.get("image") or facts.get("node", ""))))
    throttle = EventThrottle(run)

    def show(picture: bytes) -> None:
        throttle.handle("preview", {"node": "5", "type": "image/jpeg", "image": picture})

    for picture in (b"1", b"2", b"3"):
        show(picture)
    assert told == [("preview", "MQ==")]
    assert 0 < throttle.timeout(9.0) <= PREVIEW_INTERVAL
    time.sleep(PREVIEW_INTERVAL)
    throttle.flush_due()
    assert told[1:] == [("preview", "Mw==")]
    show(b"4")
    show(b"x" * (1 << 20))
    throttle.handle("executing", {"node": "9"})
    assert told[2:] == [("preview", "NA=="), ("executing", "9")]
    assert throttle.timeout(9.0) == 9.0


def test_held_messages_are_received_before_the_next_posted_one() -> None:
    run = PromptRun("p", GRAPH, RunContext(0))
    run.hold("started", {})
    run.deliver("y", [1])
    assert run.next_message(0.01) is None
    run.hold("executed", {"node": "1"})
    run.post("success", {})
    received = [run.next_message(1.0) for _ in range(4)]
    assert [message[0] for message in received if message] == ["started", "output", "executed", "success"]
    assert run.is_finished
    run.flush()
    assert run.next_message(0.01) is None


def test_a_message_about_a_node_reaches_a_waiting_run_although_no_other_follows() -> None:
    run, runner = PromptRun("p", GRAPH, RunContext(0)), QueueRunner()

    async def receive() -> None:
        for number in range(3):
            runner._on_message(run, "executing", {"node": str(number)})
        await asyncio.sleep(0.2)
        runner._on_message(run, "executing", {"node": "3"})
        await asyncio.sleep(0.2)

    asyncio.run(receive())
    received = [run.next_message(0.1) for _ in range(4)]
    assert [message[1]["node"] for message in received if message] == ["0", "1", "2", "3"]
