"""A list or a batch split over two replicas: the same result as on one server, in the time of the longer half."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samples.comfy import Servers
from samples.comfy_graphs import Caller, know, load_image, node
from samples.page_view import Shown, show

pytestmark = [pytest.mark.filterwarnings("ignore:BuildMismatch"), pytest.mark.conformance]


def on_both(name: str, nodes: list[str], **more: str) -> dict[str, Any]:
    endpoint = {"replicas": ["a", "b"], **more}
    return {"yggdrasill": {"graphs": {name: {"nodes": nodes, "endpoint": endpoint}}}}


def sleeping(salt: str) -> dict[str, Any]:
    return {
        "1": node("TestSeveral", count=8),
        "2": node("TestSlow", value=("1", 0), seconds=2.0, salt=salt),
        "3": node("TestDouble", value=("2", 0)),
        "4": node("TestTell", value=("3", 0), text="told"),
        "5": node("TestShow", value=("4", 0)),
    }


def test_a_list_over_two_sleeping_replicas_takes_half_the_time(a: Caller, b: Caller) -> None:
    one, alone = timed(a, sleeping("one"))
    both, together = timed(a, sleeping("both"), on_both("sleep", ["2", "3", "4"]))
    assert both.outputs == one.outputs
    assert both.outputs["5"] == {"text": [repr(2.0 * number) for number in range(8)]}
    assert both.outputs["4"] == {"text": ["told"] * 8}
    assert [len(caller.jobs(graph_id="sleep")) for caller in (a, b)] == [1, 1]
    # half of it, and what a call costs on a machine that has other work
    assert together < 0.5 * alone + 6.0, (together, alone)


def test_files_shown_by_all_shares_are_kept(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("TestSeveral", count=4),
        "2": node("TestSketch", value=("1", 0), grey=77),
        "3": node("TestShow", value=("2", 0)),
    }
    shown = show(a.server, prompt, on_both("sketches", ["2"]))
    assert [len(caller.jobs(graph_id="sketches")) for caller in (a, b)] == [1, 1]
    assert len({item["filename"] for item in shown.outputs["2"]["images"]}) == 2
    assert len(pixels(a, shown, "2")) == 4


def timed(caller: Caller, prompt: dict[str, Any], extra: dict[str, Any] | None = None) -> tuple[Shown, float]:
    started = time.perf_counter()
    shown = show(caller.server, prompt, extra)
    return shown, time.perf_counter() - started


def test_an_error_in_one_share_is_reported_on_the_node(a: Caller, b: Caller) -> None:
    prompt = {**sleeping("bad"), "2": node("TestFail", value=("1", 0), message="no flour")}
    shown = show(a.server, prompt, on_both("fails", ["2", "3", "4"]))
    assert (shown.error["node_id"], shown.error["exception_message"].strip()) == ("2", "no flour")


def test_a_list_with_split_none_goes_to_one_replica(a: Caller, b: Caller) -> None:
    prompt = {**sleeping("whole"), "2": node("TestDouble", value=("1", 0))}
    assert show(a.server, prompt, on_both("whole", ["2", "3", "4"], split="none")).outputs["5"] == {
        "text": [repr(4.0 * number) for number in range(8)]
    }
    assert sum(len(caller.jobs(graph_id="whole")) for caller in (a, b)) == 1


# -- batches ----------------------------------------------------------------------------------------------------


def test_a_batch_of_8_pictures_over_two_replicas_equals_that_of_one_server(a: Caller, b: Caller) -> None:
    rng = np.random.default_rng(8)
    prompt: dict[str, Any] = {
        str(number): load_image(a.server, f"share-{number}.png", rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
        for number in range(1, 9)
    }
    links = {f"images.image{number}": (str(number + 1), 0) for number in range(8)}
    prompt |= {
        "20": node("BatchImagesNode", **links),
        "21": node("ImageBlur", image=("20", 0), blur_radius=3, sigma=1.5),
        "22": node("ImageInvert", image=("21", 0)),
        "23": node("SaveImage", images=("22", 0), filename_prefix="shared"),
    }
    one = show(a.server, prompt)
    prompt["23"] = node("SaveImage", images=("22", 0), filename_prefix="shared-out")
    both = show(a.server, prompt, on_both("pictures", ["21", "22"], split="batch"))
    assert [len(caller.jobs(graph_id="pictures")) for caller in (a, b)] == [1, 1]
    assert len(pixels(a, both, "23")) == 8
    assert pixels(a, both, "23") == pixels(a, one, "23")
    assert len(set(pixels(a, both, "23"))) == 8
    show(
        a.server, {**prompt, "22": node("ImageFlip", image=("21", 0), flip_method="y-axis: horizontally")}, on_both("unsplit", ["21", "22"])
    )
    assert sum(len(caller.jobs(graph_id="unsplit")) for caller in (a, b)) == 1


def pixels(caller: Caller, shown: Shown, node_id: str) -> list[bytes]:
    """Return the pixels of the files that an output node saved."""
    found = []
    for item in shown.outputs[node_id]["images"]:
        with Image.open(caller.server.base / item["type"] / item["subfolder"] / item["filename"]) as picture:
            found.append(picture.tobytes())
    return found


def test_a_batch_of_8_latents_gets_the_noise_it_has_on_one_server(a: Caller, b: Caller, servers: Servers) -> None:
    script = Path(__file__).resolve().parent.parent / "checkpoint.py"
    made = servers.installation.run(script, str(a.server.base / "models"))
    assert made.returncode == 0, made.stderr
    shutil.copytree(a.server.base / "models", b.server.base / "models", dirs_exist_ok=True)
    prompt = {
        "1": node("CheckpointLoaderSimple", ckpt_name="tiny.ckpt"),
        "2": node("CLIPTextEncode", text="a hill", clip=("1", 1)),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=8),
        "5": sampler(1),
        "6": node("VAEDecode", samples=("5", 0), vae=("1", 2)),
        "7": node("SaveImage", images=("6", 0), filename_prefix="noise"),
    }
    one = show(a.server, prompt)
    both = show(
        a.server, {**prompt, "7": node("SaveImage", images=("6", 0), filename_prefix="noisy")}, on_both("noise", ["5", "6"], split="batch")
    )
    assert [len(caller.jobs(graph_id="noise")) for caller in (a, b)] == [1, 1]
    found, wanted = pixels(a, both, "7"), pixels(a, one, "7")
    assert len(set(found)) == len(found) == 8
    assert found == wanted


def sampler(seed: int) -> dict[str, Any]:
    links = {"model": ("1", 0), "positive": ("2", 0), "negative": ("2", 0), "latent_image": ("4", 0)}
    return node("KSampler", **links, seed=seed, steps=2, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0)


# -- whole prompts ----------------------------------------------------------------------------------------------


def test_a_whole_prompt_goes_to_the_least_busy_replica_and_saves_files_locally(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("EmptyImage", width=16, height=12, batch_size=2, color=255),
        "2": node("ImageInvert", image=("1", 0)),
        "3": node("SaveImage", images=("2", 0), filename_prefix="whole"),
    }
    nothing_travels = {
        "1": load_image(a.server, "stays.png", np.zeros((8, 8, 3), dtype=np.uint8)),
        "2": node("PreviewImage", images=("1", 0)),
    }
    try:
        know(a.server, {"a": a.server, "b": b.server}, {"*": {"replicas": ["a", "b"]}})
        here = show(a.server, prompt, {"yggdrasill": {"graphs": {"*": {"endpoint": "local"}}}})
        assert a.jobs(graph_id="*") == b.jobs(graph_id="*") == []
        there = show(a.server, {**prompt, "3": node("SaveImage", images=("2", 0), filename_prefix="whole-there")})
        assert pixels(a, there, "3") == pixels(a, here, "3")
        # the server that has the workflow is busy with it
        assert (len(a.jobs(graph_id="*")), len(b.jobs(graph_id="*"))) == (0, 1)
        assert show(a.server, nothing_travels).entry["status"]["status_str"] == "success"
    finally:
        know(a.server, {"a": a.server, "b": b.server})
