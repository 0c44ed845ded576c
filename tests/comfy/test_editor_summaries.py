"""The summaries of endpoints and runs for the editor, without a ComfyUI."""

from __future__ import annotations

from typing import Any

import pytest

from yggdrasill.errors import EndpointUnreachable
from yggdrasill.remote.client import EndpointClient
from yggdrasill.server_ext.comfy.editor.endpoint_queries import served_graphs
from yggdrasill.server_ext.comfy.editor.endpoint_summary import endpoint_summary, host_of, models_of
from yggdrasill.server_ext.comfy.editor.jobs import job_summary
from yggdrasill.server_ext.comfy.editor.last_run import figures
from yggdrasill.server_ext.comfy.placement.endpoint_monitor import EndpointState

FACTS: dict[str, Any] = {
    "torch": {"version": "2.9"},
    "devices": [{"name": "RTX"}],
    "graphs": 2,
    "comfy": {"version": "0.33.0", "models": {"loras": ["a.safetensors", "b.safetensors"]}},
}


def call(endpoint: str, start: float, **spans: float) -> dict[str, Any]:
    """A call with consecutive spans."""
    at, told = start, []
    for kind, seconds in spans.items():
        told.append({"kind": kind, "start": at, "end": at + seconds})
        at += seconds
    return {"endpoint": endpoint, "started": start, "finished": at, "spans": told, "bytes_sent": 5, "bytes_received": 7, "bytes_direct": 1}


def test_the_summary_of_an_endpoint_that_is_up() -> None:
    queue = {"queued": 1, "running": 2, "slots": 1}
    state = EndpointState("forge", True, health={"version": "0.1", "queue": queue, "memory": []}, facts=FACTS)
    found = endpoint_summary(state, "https://forge.example:8443/secret-path")
    assert (found["state"], found["problem"], found["host"]) == ("up", None, "forge.example:8443")
    assert (found["queue"], found["comfy"], found["models"], found["graphs"]) == (queue, "0.33.0", {"loras": 2}, 2)
    assert "secret-path" not in str(found)


@pytest.mark.parametrize(
    "kind, state",
    [
        ("EndpointUnreachable", "down"),
        ("AccessDenied", "refused"),
        ("ProtocolMismatch", "other version"),
        ("EndpointFailed", "failing"),
        (None, "down"),
    ],
)
def test_the_summary_of_an_endpoint_that_is_down_has_the_reason(kind: str | None, state: str) -> None:
    found = endpoint_summary(EndpointState("forge", False, "it said no", kind=kind), "http://forge")
    assert found == {"name": "forge", "host": "forge", "state": state, "problem": "it said no"}


async def test_the_error_of_an_unreachable_endpoint_has_no_address() -> None:
    with pytest.raises(EndpointUnreachable) as caught:
        await served_graphs(EndpointClient("http://127.0.0.1:9/secret-path", name="closed"))
    assert caught.value.message == "endpoint 'closed': nothing answers at its url; start the endpoint or correct its url"
    assert "127.0.0.1" not in str(caught.value.to_dict())


def test_the_summary_of_a_failed_job_names_the_lost_endpoint_without_its_address() -> None:
    lost = EndpointUnreachable("endpoint 'forge' at http://forge:8400/secret-path is not up (HTTP 503)", endpoint="forge")
    assert job_summary({"job_id": "a", "error": lost.to_dict()})["error"] == "endpoint 'forge' is not up (HTTP 503)"
    assert job_summary({"job_id": "a", "error": {"message": "there is no https://models.example/a", "details": {}}})["error"] == (
        "there is no https://models.example/a"
    )


def test_a_headless_endpoint_has_no_models() -> None:
    assert models_of({"comfy": None}) == models_of({}) == {}
    assert host_of("http://[::1]:8188/x") == "[::1]:8188"


def test_the_figures_of_a_run_are_summed_by_endpoint() -> None:
    last = {"calls": [call("a", 10.0, transfer=1.0, wait=2.0, compute=3.0), call("b", 11.0, compute=9.0), call("a", 12.0, compute=1.0)]}
    found = figures(last)
    assert found["seconds"] == 10.0
    assert found["places"] == [
        {"name": "a", "compute": 4.0, "transfer": 1.0, "wait": 2.0, "bytes": 26, "total": 7.0},
        {"name": "b", "compute": 9.0, "transfer": 0.0, "wait": 0.0, "bytes": 13, "total": 9.0},
    ]
    assert figures({"calls": []}) == {"places": [], "seconds": 0.0}
