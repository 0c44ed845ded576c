"""Long queues of placed prompts: the memory of the caller and of the endpoint stays flat."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samples.comfy import Servers, make_base_directory
from samples.comfy_graphs import Caller, know, node, until
from samples.page_view import on_endpoints

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")

_PACK = Path(__file__).parents[2] / "samples" / "memory_pack.py"
_MB = 1 << 20


@pytest.fixture(scope="module")
def sides(servers: Servers) -> Iterator[tuple[Caller, Caller]]:
    """A caller and its endpoint ``b``, with a pack that reports their memory."""
    started = []
    for name in ("caller", "endpoint"):
        base = make_base_directory(servers.folder / f"memory-{name}")
        shutil.copy(_PACK, base / "custom_nodes" / _PACK.name)
        started.append(servers.launch(base=base))
    for server in started:
        server.wait_until_ready()
    know(started[0], {"b": started[1]})
    yield Caller(started[0]), Caller(started[1])
    for server in started:
        server.stop()


def placed(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A prompt whose picture is made at the endpoint, with results that no cache has, and its ``extra_data``."""
    prompt = {
        "1": node("EmptyImage", width=16, height=16, batch_size=1, color=number),
        "2": node("ImageInvert", image=("1", 0)),
        "3": node("ImageBlur", image=("2", 0), blur_radius=1, sigma=1.0),
        "4": node("PreviewImage", images=("3", 0)),
    }
    return prompt, on_endpoints(paint=("b", ["2", "3"]))


def run_placed(caller: Caller, numbers: range) -> None:
    """Queue one prompt for each number and wait until all have succeeded."""
    ids = []
    for number in numbers:
        prompt, extra = placed(number)
        ids.append(caller.start(prompt, extra_data=extra))
    until(lambda: caller.queue() == ([], []), 60.0 + len(numbers))
    found = caller.server.get("/history")
    failed = [found[each]["status"] for each in ids if found.get(each, {}).get("status", {}).get("status_str") != "success"]
    assert not failed, failed[:1]
    caller.server.post("/history", {"clear": True})


def memory_of(side: Caller) -> dict[str, Any]:
    """Return the memory of a server, see `samples/memory_pack.py`."""
    found: dict[str, Any] = side.server.get("/test_memory?types=1", timeout=60)
    return found


def growth(before: dict[str, Any], after: dict[str, Any], prompts: int) -> str:
    """Return the types of which more objects are alive than before, most first, as text for a failure message."""
    more = {name: count - before["types"].get(name, 0) for name, count in after["types"].items()}
    most = sorted(((count, name) for name, count in more.items() if count > prompts // 10), reverse=True)
    facts = {key: after[key] - before[key] for key in before if key != "types"}
    return json.dumps({"facts": facts, "types": most[:25]})


def check_flat(sides: tuple[Caller, Caller], warm: int, prompts: int, *, objects: int) -> None:
    """Assert that ``prompts`` more placed prompts after ``warm`` ones leave fewer than ``objects`` more objects, and no more memory.

    One prompt consists of more than a hundred objects at the caller. Tables that keep the last jobs fill up, and asyncio keeps some
    cancelled timers with their contexts, until they are half of all.
    """
    caller = sides[0]
    run_placed(caller, range(1, warm + 1))
    before = [memory_of(side) for side in sides]
    run_placed(caller, range(warm + 1, warm + prompts + 1))
    after = [memory_of(side) for side in sides]
    for name, one, other in zip(("caller", "endpoint"), before, after, strict=True):
        problem = f"{name}: {growth(one, other, prompts)}"
        print(problem, one["rss"] // _MB, other["rss"] // _MB)  # noqa: T201 - the figures of the run
        assert other["objects"] - one["objects"] < objects, problem
        assert other["threads"] - one["threads"] < 16, problem
        assert other["files"] - one["files"] < 16, problem
        assert other["rss"] - one["rss"] < 24 * _MB, problem


def test_a_short_queue_of_placed_prompts_leaves_memory_flat(sides: tuple[Caller, Caller]) -> None:
    check_flat(sides, 20, 80, objects=6000)


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_thousand_placed_prompts_after_a_thousand_leave_memory_flat(sides: tuple[Caller, Caller]) -> None:
    check_flat(sides, 1200, 1000, objects=1000)
