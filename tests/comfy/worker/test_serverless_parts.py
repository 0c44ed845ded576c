"""Parts of an ordinary workflow, and stages of a world, on a serverless worker with a real ComfyUI: equal to the local run bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sqlalchemy", reason="the extra 'gateway' is not installed")

from samples.comfy import ROOT, Installation, Servers, make_base_directory
from samples.comfy_graphs import Caller, InBackground, data_folder, load_image, node, until
from samples.gateways import GATEWAY_TOKEN, GatewayProcess
from samples.level_nodes import value_of
from samples.page_view import Shown, on_endpoints, show
from samples.serverless_pools import Pool, calling
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.values import dumps
from yggdrasill.world import World

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore:BuildMismatch")]
FAR = 400.0
_NODES = ROOT / "tests" / "comfy" / "host" / "nodes_for_tests.py"


@pytest.fixture(scope="module")
def cloud(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool with a worker that has a ComfyUI with the test's nodes, and an artifact store."""
    folder = tmp_path_factory.mktemp("cloud")
    (folder / "nodes").mkdir()
    shutil.copy(_NODES, folder / "nodes" / _NODES.name)
    paths = folder / "paths.yaml"
    paths.write_text(json.dumps({"tests": {"custom_nodes": str(folder / "nodes")}}), encoding="utf-8")
    gateway = GatewayProcess(folder / "gateway", pools=["cloud"], worker_lease=5.0).start()
    pool = Pool(
        gateway,
        "cloud",
        folder / "pool",
        COMFY_HOME=str(installation.folder),
        COMFYUI_PYTHON=str(installation.python),
        COMFY_ARGS=f"--cpu {installation.flag_without_api_nodes} --extra-model-paths-config {paths}",
        YGGDRASILL_ARTIFACT_STORE=str(folder / "store"),
    )
    try:
        pool.work("anvil")
        yield pool
    finally:
        pool.close()
        gateway.stop()


@pytest.fixture(scope="module")
def caller(servers: Servers, cloud: Pool) -> Caller:
    """A ComfyUI whose registry has the pool as the endpoint ``cloud``."""
    base = make_base_directory(servers.folder / "serverless")
    shutil.copy(_NODES, base / "custom_nodes" / _NODES.name)
    api = {"RUNPOD_ENDPOINT_BASE_URL": f"{cloud.gateway.url}/v2", "RUNPOD_API_KEY": GATEWAY_TOKEN}
    server = servers.start("--cache-none", base=base, environment=api)
    place(server)
    return Caller(server)


def place(server: Any, **graphs: Any) -> None:
    folder = data_folder(server)
    document = {"endpoints": {"cloud": {"url": "runpod://cloud"}}, "graphs": graphs}
    (folder / "endpoints.yaml").write_text(json.dumps(document), encoding="utf-8")


def pictures(caller: Caller, shown: Shown, node_id: str) -> list[tuple[int, ...]]:
    found = []
    for item in shown.outputs[node_id]["images"]:
        with Image.open(caller.server.base / item["type"] / item["subfolder"] / item["filename"]) as picture:
            found.append(tuple(int(value) for value in np.asarray(picture).reshape(-1)))
    return found


def shapes(caller: Caller, radius: int) -> dict[str, Any]:
    rng = np.random.default_rng(radius)
    return {
        "1": load_image(caller.server, f"serverless-{radius}.png", rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)),
        "2": node("ImageInvert", image=("1", 0)),
        "3": node("ImageBlur", image=("2", 0), blur_radius=radius, sigma=1.5),
        "4": node("ImageBlend", image1=("3", 0), image2=("1", 0), blend_factor=0.5, blend_mode="multiply"),
        "5": node("SaveImage", images=("4", 0), filename_prefix=f"serverless-{radius}"),
        "6": node("PreviewImage", images=("2", 0)),
    }


def show_at(caller: Caller, prompt: dict[str, Any], extra: dict[str, Any] | None = None) -> Shown:
    return show(caller.server, prompt, extra, seconds=FAR)


def test_a_placed_part_returns_the_same_pixels_and_messages(caller: Caller, cloud: Pool) -> None:
    prompt = shapes(caller, 3)
    placed = show_at(caller, prompt, on_endpoints(part=("cloud", ["2", "3", "4"])))
    before = cloud.jobs()["completed"]
    here = show_at(caller, prompt)
    assert before > 0
    assert cloud.jobs()["completed"] == before
    assert placed.ran == here.ran == {"1", "2", "3", "4", "5", "6"}
    for saver in ("5", "6"):
        assert pictures(caller, placed, saver) == pictures(caller, here, saver)
    assert placed.outputs.keys() == here.outputs.keys()


def test_a_large_picture_that_an_inner_node_shows_arrives_whole(caller: Caller) -> None:
    rng = np.random.default_rng(7)
    prompt = {
        "1": load_image(caller.server, "large.png", rng.integers(0, 256, (640, 640, 3), dtype=np.uint8)),
        "2": node("ImageInvert", image=("1", 0)),
        "3": node("PreviewImage", images=("2", 0)),
        "4": node("SaveImage", images=("2", 0), filename_prefix="large"),
    }
    placed, here = show_at(caller, prompt, on_endpoints(part=("cloud", ["2", "3"]))), show_at(caller, prompt)
    assert placed.outputs.keys() == here.outputs.keys() == {"3", "4"}
    for shower in ("3", "4"):
        assert pictures(caller, placed, shower) == pictures(caller, here, shower)


def test_an_error_inside_is_reported_on_its_node(caller: Caller) -> None:
    prompt = {
        "1": node("TestSeveral", count=2),
        "2": node("TestDouble", value=("1", 0)),
        "3": node("TestFail", value=("2", 0), message="the oven is cold"),
        "4": node("TestShow", value=("3", 0)),
    }
    placed, here = show_at(caller, prompt, on_endpoints(bake=("cloud", ["2", "3"]))), show_at(caller, prompt)
    for name in ("node_id", "node_type", "exception_type", "exception_message"):
        assert placed.error[name] == here.error[name]


def test_outputs_and_progress_of_inner_nodes_have_their_ids(caller: Caller) -> None:
    prompt = {
        "1": node("TestSeveral", count=1),
        "2": node("TestTell", value=("1", 0), text="from inside"),
        "3": node("TestSlow", value=("2", 0), seconds=5.0, salt="serverless"),
        "4": node("TestShow", value=("3", 0)),
    }
    shown = show_at(caller, prompt, on_endpoints(tell=("cloud", ["2", "3"])))
    assert shown.outputs == {"2": {"text": ["from inside"]}, "4": {"text": ["0.0"]}}
    assert [data["output"] for data in shown.of("executed") if data["node"] == "2"] == [{"text": ["from inside"]}]
    values = [data["nodes"]["3"]["value"] for data in shown.of("progress_state") if "3" in data["nodes"]]
    assert len(set(values)) > 1
    assert shown.ran == {"1", "2", "3", "4"}


def test_an_interrupt_stops_the_part_at_its_worker(caller: Caller, cloud: Pool) -> None:
    prompt = {
        "1": node("TestSeveral", count=1),
        "2": node("TestSlow", value=("1", 0), seconds=600.0, salt="placed"),
        "3": node("TestShow", value=("2", 0)),
    }
    watched = InBackground(partial(show_at, caller, prompt, on_endpoints(long=("cloud", ["2"]))))
    until(lambda: cloud.rows()[0]["status"] == "IN_PROGRESS" and (cloud.rows()[0]["progress"] or {}).get("output"), FAR)
    caller.server.post("/interrupt", {"prompt_id": caller.queue()[0][0]})
    shown: Shown = watched.wait()
    assert shown.of("execution_interrupted")[0]["node_id"] == "2"
    until(lambda: cloud.rows()[0]["status"] == "CANCELLED", FAR)
    # the worker is free again
    assert show_at(caller, {**prompt, "2": node("TestDouble", value=("1", 0))}, on_endpoints(twice=("cloud", ["2"]))).outputs["3"] == {
        "text": ["0.0"]
    }


def test_a_world_with_stages_on_a_worker_is_the_same(caller: Caller, cloud: Pool) -> None:
    expected = World.from_template("canon_2.0", size=32, world_id="small").run(num_steps=2)
    world = World.from_template("canon_2.0", size=32, world_id="small")
    with calling(cloud.gateway):
        before = cloud.jobs()["completed"]
        remote = world.place(cloud.registry({"creator": "cloud", "philosopher": "cloud"}, default="local"))
        assert dumps(remote.run(num_steps=2).to_dict()) == dumps(expected.to_dict())
        assert cloud.jobs()["completed"] > before


def test_a_world_in_the_editor_with_a_stage_on_a_worker_is_the_same(caller: Caller, cloud: Pool) -> None:
    expected = World.from_template("canon_2.0", size=32, world_id="edited").run(num_steps=2)
    prompt = {
        "1": node("YggdrasillWorld", source="template: canon_2.0", **{"source.size": 32, "source.world_id": "edited"}),
        "2": node("YggdrasillRunWorld", world=("1", 0), action="", steps=2, seed=-1, keep=False),
    }
    before = cloud.jobs()["completed"]
    place(caller.server, creator="cloud")
    try:
        assert dumps(value_of(caller, prompt, ("2", 0))) == dumps(expected.to_dict())
    finally:
        place(caller.server)
    assert cloud.jobs()["completed"] > before


def test_the_capabilities_of_a_worker_name_no_place_of_its_machine(cloud: Pool) -> None:
    with calling(cloud.gateway):
        capabilities = loop_thread().run(cloud.registry().client("cloud").capabilities())
    assert capabilities["host"] == "comfy"
    assert str(cloud.folder) not in json.dumps(capabilities)
    assert not {"peer_url", "store_id"} & capabilities.keys()


def test_no_secret_is_in_the_log_of_the_worker(cloud: Pool) -> None:
    assert "planted-secret" not in cloud.logs()
    assert not [path for path in Path(cloud.folder).rglob("*.json") if GATEWAY_TOKEN in path.read_text(encoding="utf-8", errors="replace")]
