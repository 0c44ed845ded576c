"""What nested prompts and built graphs hold is released by ComfyUI's own rules: with the prompt, by its cache type, and by *Free memory*."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from samples.comfy import Installation, Server, Servers, make_base_directory
from samples.comfy_graphs import Caller, graph_output, node, until
from samples.level_nodes import pasted

pytestmark = [pytest.mark.filterwarnings("ignore:BuildMismatch"), pytest.mark.conformance]

_PACK = Path(__file__).parents[2] / "samples" / "memory_pack.py"
_WRITE_MODELS = Path(__file__).parents[1] / "checkpoint.py"
_MB = 1 << 20
_FLAGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "classic": ("--cache-classic",),
    "lru": ("--cache-lru", "20"),
    "none": ("--cache-none",),
}


@pytest.fixture(scope="module")
def models(installation: Installation, servers: Servers) -> Path:
    """A models folder with a tiny checkpoint."""
    folder = servers.folder / "memory-models"
    done = installation.run(_WRITE_MODELS, str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module", params=list(_FLAGS))
def held(request: pytest.FixtureRequest, servers: Servers, models: Path) -> Iterator[Caller]:
    """A server with one of ComfyUI's cache types, which reports its memory."""
    base = make_base_directory(servers.folder / f"memory-{request.param}")
    shutil.copy(_PACK, base / "custom_nodes" / _PACK.name)
    shutil.rmtree(base / "models")
    shutil.copytree(models, base / "models")
    server = servers.start(*_FLAGS[request.param], base=base)
    server.post("/test_memory/block", {})
    yield Caller(server)
    server.stop()


def memory_of(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.get("/test_memory", timeout=60)
    return found


def succeeds(server: Server, prompt: dict[str, Any]) -> None:
    entry = server.run(prompt, timeout=300)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]


def free(server: Server) -> None:
    """Choose *Free model and node cache*, and wait until ComfyUI has done it."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    succeeds(server, {"1": node("EmptyImage", width=8, height=8, batch_size=1, color=3), "2": node("PreviewImage", images=("1", 0))})


def run_graph(config: dict[str, Any], seed: int, *ports: tuple[str, int]) -> dict[str, Any]:
    links = {f"ports.p{index}": port for index, port in enumerate(ports)}
    return {
        "1": pasted("graph", config),
        "2": node("EmptyImage", width=8, height=8, batch_size=1, color=1),
        "3": node("YggdrasillRunGraph", graph=("1", 0), seed=seed, loop_steps=0, preview=True, **links),
        "4": node("PreviewImage", images=("3", 0)),
    }


def with_checkpoint(seed: int) -> dict[str, Any]:
    """A ComfyUI workflow with a checkpoint that a node runs nested."""
    prompt = {
        "1": node("CheckpointLoaderSimple", ckpt_name="tiny.ckpt"),
        "2": node("CLIPTextEncode", clip=("1", 1), text=f"a hill {seed}"),
        "3": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "4": node(
            "KSampler",
            model=("1", 0),
            positive=("2", 0),
            negative=("2", 0),
            latent_image=("3", 0),
            seed=seed,
            steps=1,
            cfg=1.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "5": node("VAEDecode", samples=("4", 0), vae=("1", 2)),
        "6": graph_output("y", ("5", 0), "IMAGE"),
    }
    return {"kind": "comfy", "graph_id": "with-checkpoint", "prompt": prompt}


def with_weights(seed: int) -> dict[str, Any]:
    """A ComfyUI workflow with weights of 64 MiB that a node runs nested."""
    prompt = {
        "1": node("TestWeights", seed=seed),
        "2": node("EmptyImage", width=8, height=8, batch_size=1, color=seed),
        "3": node("TestUseWeights", weights=("1", 0), image=("2", 0)),
        "4": graph_output("y", ("3", 0), "IMAGE"),
    }
    return {"kind": "comfy", "graph_id": "with-weights", "prompt": prompt}


HEAVY = {
    "graph_id": "heavy",
    "nodes": [{"node_id": "h", "block_type": "test/heavy", "config": {}}],
    "edges": [],
    "exposed_inputs": [{"node_id": "h", "port_name": "x", "name": "x"}],
    "exposed_outputs": [{"node_id": "h", "port_name": "y", "name": "y"}],
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("workflow", [with_weights, with_checkpoint])
def test_the_models_of_a_nested_prompt_end_with_the_outer_prompt(held: Caller, workflow: Callable[[int], dict[str, Any]]) -> None:
    server = held.server
    succeeds(server, run_graph(workflow(0), 0))
    free(server)
    before = memory_of(server)
    succeeds(server, run_graph(workflow(1), 1))
    until(lambda: memory_of(server)["parameter_bytes"] <= before["parameter_bytes"], 20)
    free(server)
    after = memory_of(server)
    assert (after["parameters"], after["parameter_bytes"]) == (before["parameters"], before["parameter_bytes"])
    assert after["rss"] - before["rss"] < 16 * _MB, (before, after)


def test_a_built_graph_is_released_as_the_cache_type_and_free_memory_say(held: Caller, request: pytest.FixtureRequest) -> None:
    server = held.server
    succeeds(server, run_graph(HEAVY, 0, ("2", 0)))
    free(server)
    before = memory_of(server)
    succeeds(server, run_graph(HEAVY, 1, ("2", 0)))
    kept = memory_of(server)["parameter_bytes"] - before["parameter_bytes"]
    assert kept == (0 if request.node.callspec.params["held"] == "none" else 64 * _MB)
    free(server)
    after = memory_of(server)
    assert after["parameter_bytes"] == before["parameter_bytes"]
    assert after["rss"] - before["rss"] < 16 * _MB, (before, after)
