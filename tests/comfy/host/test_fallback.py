"""The fallback ``local`` when no endpoint accepts a call: the same workflow runs locally with a message, or nothing runs."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from samples.comfy_graphs import Caller, Prompt, data_folder, graph_input, graph_output, know, node, remote_node, until
from yggdrasill.remote.loop_thread import loop_thread

pytestmark = [pytest.mark.filterwarnings("ignore:BuildMismatch"), pytest.mark.conformance]


def double(salt: str, graph: int = 2) -> Prompt:
    """A workflow that returns its inverted picture and a list of numbers."""
    return {
        "1": graph_input("x", "IMAGE"),
        "2": node("ImageInvert", image=("1", 0)),
        "3": node("ImageBlur", image=("2", 0), blur_radius=graph, sigma=1.5),
        "4": node("TestSeveral", count=3),
        "5": graph_output("y", ("3", 0), "IMAGE"),
        "6": graph_output(f"numbers {salt}", ("4", 0)),
    }


def through(graph: str, **inputs: Any) -> Prompt:
    """A workflow that calls a graph and returns its picture."""
    return {
        "1": graph_input("x", "IMAGE"),
        "2": remote_node(graph, "b", ("1", 0), **inputs),
        "3": graph_output("y", ("2", 0), "IMAGE"),
    }


def calling(graph: str, color: int, endpoint: str = "b", **inputs: Any) -> Prompt:
    """A prompt of the owner."""
    return {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=color),
        "2": remote_node(graph, endpoint, ("1", 0), **{"fallback": "local", **inputs}),
        "3": node("TestShow", value=("2", 1)),
    }


class Deaf:
    """A server that closes every connection, and counts them."""

    def __init__(self) -> None:
        self.calls = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._server.accept()
                self.calls += 1
                caller.close()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@contextlib.contextmanager
def gone(a: Caller, b: Caller, graphs: dict[str, Any] | None = None, url: str = "http://127.0.0.1:9") -> Iterator[None]:
    """Make endpoint ``b`` unreachable from ``a``, which looks for it at ``url``."""
    file = data_folder(a.server) / "endpoints.yaml"
    know(a.server, {"a": a.server, "b": b.server}, graphs)
    file.write_text(file.read_text(encoding="utf-8").replace(b.server.url, url), encoding="utf-8")
    try:
        yield
    finally:
        know(a.server, {"a": a.server, "b": b.server})


def served_by_both(graph: str, prompt: Prompt, a: Caller, b: Caller) -> str:
    """Return the contract of a workflow that both servers serve, as a node stores it."""
    for side in (a, b):
        side.deploy(graph, prompt)
    return json.dumps(loop_thread().run(b.client.contract(graph)))


def error_of(entry: dict[str, Any]) -> str:
    """Return the message of the error that ended a prompt."""
    found: dict[str, Any] = next(facts for kind, facts in entry["status"]["messages"] if kind == "execution_error")
    assert found["node_id"] == "2"
    return str(found["exception_message"])


def test_the_cached_workflow_runs_locally_with_the_same_bytes_and_a_message(a: Caller, b: Caller) -> None:
    there = b.deploy("kept", double("k"))
    outer = a.deploy("kept-outer", through("kept", fallback="local"))
    picture, other = torch.rand(1, 16, 12, 3), torch.rand(2, 16, 12, 3)
    assert torch.equal(outer.run({"x": picture})["y"], there.run({"x": picture})["y"])
    wanted = there.run({"x": other})
    jobs = len(b.jobs(graph_id="kept"))
    with gone(a, b):
        found = outer.run({"x": other})
        entry = a.server.run(calling("kept", 7))
    assert torch.equal(found["y"], wanted["y"])
    assert entry["status"]["status_str"] == "success"
    assert entry["outputs"]["3"]["text"] == ["0.0", "1.0", "2.0"]
    (told,) = entry["outputs"]["2"]["yggdrasill"]
    assert "'b' cannot be reached, so graph 'kept' (hash " in told["ran_here"]
    assert "from the copy cached on" in told["ran_here"]
    assert "ran locally" in a.server.printed()
    assert len(b.jobs(graph_id="kept")) == jobs
    back = a.server.run(calling("kept", 7))
    assert "2" not in back["outputs"], "the endpoint is there again, so it runs there again"
    assert len(b.jobs(graph_id="kept")) == jobs + 1


def test_only_the_first_call_waits_for_an_unreachable_endpoint(a: Caller, b: Caller) -> None:
    b.deploy("awaited", double("w"))
    deaf, tries = Deaf(), []
    a.server.run(calling("awaited", 20))
    with contextlib.closing(deaf), gone(a, b, url=deaf.url):
        for color in (21, 22, 23):
            before = deaf.calls
            assert "ran_here" in a.server.run(calling("awaited", color))["outputs"]["2"]["yggdrasill"][0]
            tries.append(deaf.calls - before)
    # what is left is the question whether what the node gave before still holds, and one try
    assert tries[1] == tries[2] < tries[0] / 2
    assert "2" not in a.server.run(calling("awaited", 24))["outputs"], "the endpoint is there again, so it runs there again"
    with contextlib.closing(Deaf()) as again, gone(a, b, url=again.url):
        a.server.run(calling("awaited", 25))
        assert again.calls > tries[1], "it was there meanwhile, so a call waits for it"


def test_several_local_fallbacks_of_a_prompt_run_at_once(a: Caller, b: Caller) -> None:
    there = b.deploy("several", double("s"))
    prompt = {
        "1": graph_input("x", "IMAGE"),
        **{str(10 + n): remote_node("several", "b", ("1", 0), fallback="local", seed=n) for n in range(4)},
        **{str(20 + n): graph_output(f"y{n}", (str(10 + n), 0), "IMAGE") for n in range(4)},
    }
    outer = a.deploy("several-outer", prompt)
    picture = torch.rand(1, 8, 8, 3)
    outer.run({"x": picture})
    other = torch.rand(1, 8, 8, 3)
    wanted = there.run({"x": other})["y"]
    with gone(a, b):
        found = outer.run({"x": other})
    assert all(torch.equal(found[f"y{n}"], wanted) for n in range(4))


def test_without_a_cached_workflow_or_hash_nothing_runs_locally(a: Caller, b: Caller) -> None:
    a.deploy("unknown", double("u"))
    with gone(a, b):
        said = error_of(a.server.run(calling("unknown", 1)))
        assert "may differ" in said
        assert "workflow 'nowhere' is not cached on this ComfyUI" in error_of(a.server.run(calling("nowhere", 1)))


def test_a_graph_of_this_server_runs_only_with_the_same_hash(a: Caller, b: Caller) -> None:
    contract = served_by_both("twin", double("t"), a, b)
    with gone(a, b):
        entry = a.server.run(calling("twin", 2, contract=contract))
        assert entry["status"]["status_str"] == "success", entry["status"]
        assert "which this ComfyUI serves itself" in entry["outputs"]["2"]["yggdrasill"][0]["ran_here"]
        a.deploy("twin", double("t", graph=5))
        assert "differs, so it does not run locally" in error_of(a.server.run(calling("twin", 3, contract=contract)))


def test_a_cached_workflow_of_a_replaced_graph_does_not_run(a: Caller, b: Caller) -> None:
    b.deploy("moved", double("m"))
    a.server.run(calling("moved", 4))
    b.deploy("moved", double("m", graph=6))
    a.server.run(calling("moved", 4, fallback="fail"))
    with gone(a, b):
        assert "workflow 'moved' is not cached on this ComfyUI" in error_of(a.server.run(calling("moved", 5)))


def test_the_nodes_fallback_overrides_the_registry(a: Caller, b: Caller) -> None:
    b.deploy("placed", double("p"))
    a.server.run(calling("placed", 8))
    with gone(a, b, {"placed": {"replicas": ["b"], "fallback": "local"}}):
        for fallback, ends in (("auto", "success"), ("fail", "error"), ("local", "success")):
            prompt = calling("placed", 9, "auto", fallback=fallback)
            assert a.server.run(prompt)["status"]["status_str"] == ends, fallback
    with gone(a, b):
        assert a.server.run(calling("placed", 10, fallback="auto"))["status"]["status_str"] == "error"


def test_a_local_fallback_can_be_interrupted(a: Caller, b: Caller) -> None:
    slow = {
        "1": graph_input("x", "IMAGE"),
        "8": node("TestSlow", value=("1", 0), seconds=30.0, salt="here"),
        "9": graph_output("y", ("8", 0)),
    }
    contract = served_by_both("slow here", slow, a, b)
    with gone(a, b):
        prompt_id = a.start({**calling("slow here", 11, contract=contract), "3": node("TestShow", value=("2", 0))})
        until(lambda: "graph 'slow here'" in a.server.printed())
        a.server.post("/interrupt", {"prompt_id": prompt_id})
        entry = until(lambda: a.history(prompt_id))
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"


def test_a_failed_local_fallback_names_the_inner_node(a: Caller, b: Caller) -> None:
    failing = {
        "1": graph_input("x", "IMAGE"),
        "77": node("TestFail", value=("1", 0), message="the oven is cold"),
        "3": graph_output("y", ("77", 0)),
    }
    contract = served_by_both("fails here", failing, a, b)
    with gone(a, b):
        said = error_of(a.server.run({**calling("fails here", 12, contract=contract), "3": node("TestShow", value=("2", 0))}))
    assert "77" in said
    assert "the oven is cold" in said
