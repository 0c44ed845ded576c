"""The servers that the other tests in this folder use."""

from __future__ import annotations

from samples.comfy import Server, Servers

PROMPT = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 255}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def test_a_prompt_runs_and_has_an_entry_in_the_history(server: Server) -> None:
    entry = server.run(PROMPT)
    assert entry["status"]["status_str"] == "success"
    assert entry["outputs"]["2"]["images"]


def test_shared_servers_are_reused(servers: Servers) -> None:
    first, second = servers.shared(2)
    assert servers.shared(2) == [first, second]
    assert first.base != second.base
    assert second.get("/system_stats")["system"]["comfyui_version"]
