"""The worker under RunPod's SDK with a real ComfyUI: outputs in Google Cloud Storage (an emulator), in S3 (moto), and as base64."""

from __future__ import annotations

import base64
import json
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from samples.comfy import Installation
from samples.endpoints import free_port
from samples.serverless import command, environment_of, ok, post, serverless_python, started, waited

PROMPT = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 9}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "sdk"}},
}


@pytest.mark.timeout(600)
def test_a_workflow_runs_under_the_sdk_and_its_files_are_in_each_store(installation: Installation, tmp_path: Path) -> None:
    python = serverless_python()
    ports = {name: free_port() for name in ("gcs", "s3", "api")}
    gcs, s3, base = (f"http://127.0.0.1:{ports[name]}" for name in ("gcs", "s3", "api"))
    (tmp_path / "versions").mkdir()
    spec = {
        "schema": "comfy-build/1",
        "name": "tiny",
        "definition": {"schema": "distribution-definition/0", "models": []},
        "x-yggdrasill": {"workflow": PROMPT},
    }
    (tmp_path / "versions" / "tiny.json").write_text(json.dumps(spec), encoding="utf-8")
    environment = environment_of(
        tmp_path, STORAGE_EMULATOR_HOST=gcs, GCS_BUCKET="results", BUCKET_ENDPOINT_URL=s3, BUCKET_NAME="results", BUCKET_ACCESS_KEY_ID="planted-secret-id",
        BUCKET_SECRET_ACCESS_KEY="planted-secret-key", COMFY_HOME=str(installation.folder), COMFYUI_PYTHON=str(installation.python),
        COMFY_ARGS=f"--cpu {installation.flag_without_api_nodes}", VERSION_ID="tiny", MODELS_DIR=str(tmp_path / "models"),
    )  # fmt: skip
    emulator = [
        str(python.with_name("gcp-storage-emulator")),
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(ports["gcs"]),
        "--in-memory",
        "--default-bucket",
        "results",
    ]
    moto = [str(python.with_name("moto_server")), "-H", "127.0.0.1", "-p", str(ports["s3"])]
    log = tmp_path / "log"
    with started(emulator, environment, tmp_path / "gcs.log"), started(moto, environment, tmp_path / "s3.log"):
        waited(lambda: ok(gcs), tmp_path / "gcs.log")
        waited(lambda: ok(s3), tmp_path / "s3.log")
        urllib.request.urlopen(urllib.request.Request(f"{s3}/results", method="PUT")).close()
        with started(command(python, "--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(ports["api"])), environment, log):
            waited(lambda: ok(base), log, 300)
            answers = {
                mode: post(f"{base}/runsync", {"input": {"version_id": "tiny", "workflow": PROMPT, "output_mode": mode}})
                for mode in ("gcs", "s3", "base64")
            }
            compatible = post(f"{base}/runsync", {"input": {"workflow": PROMPT}})
            failed = post(f"{base}/runsync", {"input": {"version_id": "tiny", "workflow": {"1": {"class_type": "None", "inputs": {}}}}})
        outputs = {mode: answer["output"] for mode, answer in answers.items()}
        picture = base64.b64decode(outputs["base64"]["base64"])
        assert picture.startswith(b"\x89PNG")
        assert {mode: output["size"] for mode, output in outputs.items()} == dict.fromkeys(outputs, len(picture))
        name = outputs["gcs"]["gcs_url"].removeprefix("gs://results/")
        with urllib.request.urlopen(f"{gcs}/storage/v1/b/results/o/{urllib.parse.quote(name, safe='')}?alt=media") as answer:
            assert answer.read() == picture
        with urllib.request.urlopen(outputs["s3"]["url"]) as answer:
            assert answer.read() == picture
        entry = compatible["output"]["images"][0]
        assert entry["type"] == "s3_url"
        with urllib.request.urlopen(entry["data"]) as answer:
            assert answer.read() == picture
        assert failed["status"] == "FAILED"
        assert "None" in failed["error"]
        assert outputs["gcs"]["timing"]["boot"] < 5
    text = log.read_text(encoding="utf-8", errors="replace") + json.dumps([answers, failed])
    assert "ready after" in text
    assert "planted-secret-key" not in text
    assert "planted-secret-of" not in text
    found = [
        path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink() and b"planted-secret-key" in path.read_bytes()
    ]
    assert not found
