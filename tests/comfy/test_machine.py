"""Facts about the machine, and queries of endpoints, that must not disturb ComfyUI: no context on an unused GPU, no repeated wait."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.comfy_modules import install_comfy
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.server_ext.comfy import contract_fingerprint
from yggdrasill.server_ext.comfy.extension_context import ExtensionContext, set_extension_context
from yggdrasill.server_ext.comfy.inventory import memory
from yggdrasill.server_ext.comfy.runner import QueueRunner


def test_the_memory_of_a_gpu_that_comfyui_does_not_use_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The query would create a CUDA context, which takes some hundred MB of the GPU."""
    install_comfy(monkeypatch, tmp_path)
    management: Any = sys.modules["comfy.model_management"]
    asked: list[str] = []
    devices = [torch.device("cuda", index) for index in range(3)]

    def free(device: Any) -> int:
        asked.append(str(device))
        return 1

    monkeypatch.setattr(management, "get_torch_device", lambda: devices[1])
    monkeypatch.setattr(management, "get_all_torch_devices", lambda: devices)
    monkeypatch.setattr(management, "get_free_memory", free)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 if device.index == 2 else 0)
    assert [entry["device"] for entry in memory()] == ["cuda:1", "cuda:2"]
    assert asked == ["cuda:1", "cuda:2"]


def test_memory_that_cannot_be_read_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_comfy(monkeypatch, tmp_path)
    monkeypatch.delattr(sys.modules["comfy.model_management"], "get_free_memory")
    assert memory() == []


def test_a_silent_endpoint_delays_a_prompt_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Five nodes with different graphs ask the same endpoint, one after another, in the thread that runs prompts."""
    install_comfy(monkeypatch, tmp_path)
    executing: Any = sys.modules["comfy_execution.utils"]

    class Context:
        prompt_id, node_id = "p", "1"

    async def ask() -> int:
        writers: list[asyncio.StreamWriter] = []
        silent = await asyncio.start_server(lambda reader, writer: writers.append(writer), "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        registry = EndpointRegistry({"forge": f"http://127.0.0.1:{port}"}, {})
        set_extension_context(ExtensionContext(QueueRunner(), lambda: registry))
        executing.context.set(Context())
        for number in range(5):
            found = await contract_fingerprint.fingerprint(f"graph-{number}", "forge")
            assert found != found  # noqa: PLR0124 - not a number
        silent.close()
        for writer in writers:
            writer.close()
            await writer.wait_closed()
        return len(writers)

    monkeypatch.setattr(contract_fingerprint, "TIMEOUT", 0.4)
    try:
        assert asyncio.run(ask()) == 1
    finally:
        set_extension_context(None)
