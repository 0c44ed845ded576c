"""The extension in a real ComfyUI: what it adds, what it costs, and what it does not change."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from samples.comfy import ROOT, Installation, Servers, make_base_directory
from samples.comfy_graphs import Caller, data_folder, graph_input, graph_output, node
from yggdrasill.errors import AccessDenied
from yggdrasill.remote import EndpointClient
from yggdrasill.remote.loop_thread import loop_thread

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")


def test_comfyui_offers_the_nodes(a: Caller) -> None:
    forms = a.server.get("/object_info")
    assert forms["YggdrasillGraphInput"]["display_name"] == "Graph Input"
    assert forms["YggdrasillGraphOutput"]["output_node"] is True
    remote = forms["YggdrasillRemoteGraph"]
    assert remote["output"] == ["*"] * 32
    assert remote["output_is_list"] == [True] * 32
    assert forms["YggdrasillValue"]["dev_only"] is True
    assert forms["YggdrasillResult"]["dev_only"] is True


def test_the_page_loads_two_files_and_the_others_when_they_are_needed(a: Caller) -> None:
    ours = [path for path in a.server.get("/extensions") if path.startswith("/extensions/yggdrasill/")]
    assert sorted(ours) == ["/extensions/yggdrasill/definition.js", "/extensions/yggdrasill/yggdrasill.js"]
    for file in sorted((ROOT / "web").glob("*.js")):
        with urllib.request.urlopen(f"{a.server.url}/yggdrasill/web/{file.name}", timeout=10) as answer:
            assert answer.read() == file.read_bytes()
            assert "javascript" in answer.headers["Content-Type"]
            assert answer.headers["Cache-Control"] == "no-store"


def test_the_routes_require_the_token(a: Caller) -> None:
    with pytest.raises(AccessDenied, match="token"):
        loop_thread().run(EndpointClient(a.server.url).capabilities())
    facts = loop_thread().run(a.client.capabilities())
    assert facts["host"] == "comfy"
    assert "CheckpointLoaderSimple" in facts["comfy"]["node_classes"]
    assert facts["comfy"]["version"]
    assert (data_folder(a.server) / "token").stat().st_mode & 0o077 == 0


def test_other_sites_may_not_use_the_endpoint(a: Caller) -> None:
    request = urllib.request.Request(
        a.server.url + "/yggdrasill/v1/health", headers={"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    with caught.value as refused:
        assert refused.code == 403


def test_the_pack_loads_in_less_than_a_third_of_a_second(installation: Installation, tmp_path: Path) -> None:
    """Measured where ComfyUI measures it, after its own imports, with everything compiled as after a first start."""
    script = Path(__file__).with_name("measure_import.py")
    times = []
    for _ in range(3):
        done = installation.run(script, str(installation.folder), str(ROOT), str(tmp_path))
        assert done.returncode == 0, done.stderr[-2000:]
        times.append(float(done.stdout.split()[-1]))
    assert min(times) < 0.3, times


@pytest.mark.parametrize(
    "name, content, mode, said",
    [
        ("settings.yaml", "queue: sideways\n", 0o600, "sideways"),
        pytest.param("secrets.yaml", "a: tell-nobody\n", 0o644, "chmod 600", marks=pytest.mark.conformance),
    ],
)
def test_a_broken_data_folder_is_one_log_line_and_comfyui_works(servers: Servers, name: str, content: str, mode: int, said: str) -> None:
    base = make_base_directory(servers.folder / f"broken-{name}")
    folder = base / "user" / "yggdrasill"
    folder.mkdir(parents=True)
    (folder / "endpoints.yaml").write_text("endpoints: {a: {url: 'http://127.0.0.1:9'}}\n", encoding="utf-8")
    (folder / name).write_text(content, encoding="utf-8")
    (folder / name).chmod(mode)
    server = servers.start(base=base)
    lines = [line for line in server.printed().splitlines() if "Yggdrasill:" in line]
    assert len(lines) == 1, lines
    assert "this ComfyUI is not an endpoint" in lines[0]
    assert said in lines[0]
    assert "Traceback" not in server.printed()
    entry = server.run({"1": node("EmptyImage", width=8, height=8, batch_size=1, color=1), "2": node("PreviewImage", images=("1", 0))})
    assert entry["status"]["status_str"] == "success"
    server.stop()


@pytest.mark.conformance
def test_a_damaged_job_file_is_set_aside_and_jobs_run(servers: Servers) -> None:
    base = make_base_directory(servers.folder / "broken-jobs")
    folder = base / "user" / "yggdrasill"
    folder.mkdir(parents=True)
    (folder / "jobs.sqlite").write_text("no database" * 500, encoding="utf-8")
    server = servers.start(base=base)
    (line,) = [line for line in server.printed().splitlines() if "jobs.sqlite" in line]
    assert "starts without jobs" in line
    assert [path.read_text(encoding="utf-8") for path in folder.glob("jobs.sqlite.damaged-*")] == ["no database" * 500]
    served = Caller(server).deploy("echo", {"1": graph_input("x"), "2": graph_output("y", ("1", 0))})
    assert served.run({"x": 5}) == {"y": 5}
    server.stop()


def test_the_default_cache_is_warned_about_with_the_flags_that_help(servers: Servers, a: Caller) -> None:
    """With ComfyUI's default flags, a server with several graphs unloads models; the shared pair has other flags."""
    assert "--cache-lru" not in a.server.printed()
    plain = servers.start()
    assert "--cache-lru 50" in plain.printed()
    evicted = executions(Caller(plain))
    kept = executions(a)
    plain.stop()
    assert kept < evicted


def executions(side: Caller) -> int:
    """Return how many nodes of a workflow run again after another workflow ran."""

    def workflow(color: int) -> dict[str, Any]:
        return {
            "1": graph_input("x", "IMAGE"),
            "2": node("EmptyImage", width=64, height=64, batch_size=1, color=color),
            "3": node("ImageBlend", image1=("2", 0), image2=("2", 0), blend_factor=0.5, blend_mode="normal"),
            "9": graph_output("y", ("3", 0), "IMAGE"),
        }

    first, second = side.deploy("evict-1", workflow(1)), side.deploy("evict-2", workflow(2))
    import torch

    picture = torch.zeros(1, 8, 8, 3)
    for served in (first, second, first):
        served.run({"x": picture})
    events = side.events(side.jobs(graph_id="evict-1")[0]["job_id"])
    ran = {data["node"] for kind, data in events if kind == "comfy" and data["what"] == "executing"}
    return len(ran & {"2", "3"})


def test_a_config_of_a_workflow_is_refused_by_an_endpoint_without_comfyui(tmp_path: Path) -> None:
    from yggdrasill.errors import InvalidConfig
    from yggdrasill.server_ext.configs import HostRules
    from yggdrasill.server_ext.deployments import Deployments

    config = {"kind": "comfy", "graph_id": "g", "prompt": {"1": graph_input("x"), "2": graph_output("y", ("1", 0))}}
    deployments = Deployments(tmp_path, HostRules([tmp_path], tmp_path, lambda url: False))
    with pytest.raises(InvalidConfig, match="Workflows run only on ComfyUI endpoints"):
        deployments.put("g", "comfy", config, "hash")
    pipeline = {"pipeline_id": "p", "graphs": [{"pipeline_node_id": "g", "graph_config": json.loads(json.dumps(config))}]}
    with pytest.raises(InvalidConfig, match="Workflows run only on ComfyUI endpoints"):
        deployments.put("p", "pipeline", pipeline, "hash")
