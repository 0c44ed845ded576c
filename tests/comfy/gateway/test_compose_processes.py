"""The services of docker-compose.yml as processes with a real ComfyUI: a job with an image through the gateway, on both servers, and its page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from samples.comfy import Installation
from samples.endpoints import free_port
from samples.http_client import until
from samples.images import DOCKER, RoleProcess, compose

pytest.importorskip("sqlalchemy", reason="the extra 'gateway' is not installed")

TOKENS = {"GATEWAY_TOKEN": "gateway-token-of-the-compose-test", "ENDPOINT_TOKEN": "endpoint-token-of-the-compose-test"}
FAR = 240.0
PICTURE = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 48, "height": 32, "batch_size": 1, "color": 0xCC3311}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "compose"}},
}


@dataclass(eq=False)
class Stack:
    """The started services by name, and a session with the gateway's token."""

    roles: dict[str, RoleProcess]
    session: requests.Session

    @property
    def url(self) -> str:
        return self.roles["gateway"].url

    def get(self, path: str) -> Any:
        answer = self.session.get(self.url + path, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def submit(self, **body: Any) -> dict[str, Any]:
        answer = self.session.post(self.url + "/v1/workflows", json=body, timeout=60)
        assert answer.status_code in (200, 202), answer.text
        found: dict[str, Any] = answer.json()
        return found

    def result(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def has_ended() -> bool:
            answer = self.session.get(f"{self.url}/v1/jobs/{job_id}/output?wait=10", timeout=60)
            found.update(answer.json())
            return answer.status_code == 200

        until(has_ended, FAR)
        return found


def home_of(installation: Installation, folder: Path) -> Path:
    """Return ComfyUI as in the image: its files, with this checkout in its custom_nodes."""
    from yggdrasill.cli.installation import bring_extension

    folder.mkdir()
    for path in installation.folder.iterdir():
        if path.name not in ("custom_nodes", "models", "input", "output", "temp", "user", ".git", "main.py", "folder_paths.py"):
            (folder / path.name).symlink_to(path)
    for name in ("main.py", "folder_paths.py"):
        # ComfyUI looks for its folders beside these files, whose links it would follow
        shutil.copy(installation.folder / name, folder / name)
    (folder / "custom_nodes").mkdir()
    bring_extension(folder / "custom_nodes" / "yggdrasill")
    return folder


@pytest.fixture(scope="module")
def stack(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return the running services of the compose file, with ports and folders of this machine."""
    folder = tmp_path_factory.mktemp("stack")
    home = home_of(installation, folder / "ComfyUI")
    models = folder / "models"
    services = compose(TOKENS)["services"]
    ports = {name: str(free_port()) for name, service in services.items() if "build" in service}
    registry = (DOCKER / "endpoints.yaml").read_text(encoding="utf-8")
    for name in ("comfy-a", "comfy-b"):
        address = f"http://{name}:{services[name]['environment']['PORT']}"
        assert address in registry
        registry = registry.replace(address, f"http://127.0.0.1:{ports[name]}")
    (folder / "endpoints.yaml").write_text(registry, encoding="utf-8")
    roles: dict[str, RoleProcess] = {}
    try:
        for name in ("comfy-a", "comfy-b", "gateway"):
            service = services[name]
            command = [str(folder / "endpoints.yaml") if word.startswith("/etc/") else word for word in service["command"]]
            environment = {**service["environment"], "PORT": ports[name]}
            if name.startswith("comfy"):
                flags = f"--cpu {installation.flag_without_api_nodes}"
                environment |= {
                    "COMFY_HOME": str(home),
                    "COMFYUI_PYTHON": str(installation.python),
                    "MODELS_DIR": str(models),
                    "COMFY_ARGS": flags,
                }
                environment |= {"PYTHONUTF8": "1", "PYTHONPATH": ""}
            roles[name] = RoleProcess(folder / name, command, environment)
        for each in roles.values():
            until(each.healthy, FAR)
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {TOKENS['GATEWAY_TOKEN']}"
        found = Stack(roles, session)
        until(lambda: all(each["up"] for each in found.get("/v1/endpoints")["endpoints"]), FAR)
        yield found
    finally:
        for each in roles.values():
            each.stop()


def test_both_servers_are_reached_with_the_extension_and_share_their_models(stack: Stack) -> None:
    endpoints = {each["name"]: each for each in stack.get("/v1/endpoints")["endpoints"]}
    assert {name: (each["kind"], each["up"]) for name, each in endpoints.items()} == {
        "comfy-a": ("comfy", True),
        "comfy-b": ("comfy", True),
    }
    checkpoints = Path(stack.roles["comfy-a"].environment["MODELS_DIR"]) / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / "shared.safetensors").write_bytes(b"")
    until(lambda: [each["name"] for each in stack.get("/v1/checkpoints")["checkpoints"] if each["name"] == "shared.safetensors"] != [], FAR)
    (found,) = [each for each in stack.get("/v1/checkpoints")["checkpoints"] if each["name"] == "shared.safetensors"]
    assert (found["folder"], found["endpoints"]) == ("checkpoints", ["comfy-a", "comfy-b"])


def test_a_job_with_an_image_runs_and_its_picture_is_fetched(stack: Stack) -> None:
    from io import BytesIO

    from PIL import Image

    found = stack.result(stack.submit(workflow=PICTURE, name="a red picture")["job_id"])
    assert found["status"] == "COMPLETED", found["error"]
    (file,) = found["files"]
    answer = stack.session.get(file["url"], timeout=60)
    picture = Image.open(BytesIO(answer.content))
    assert (answer.headers["Content-Type"], picture.size, picture.convert("RGB").getpixel((5, 5))) == (
        "image/png",
        (48, 32),
        (0xCC, 0x33, 0x11),
    )
    saved = stack.roles[found["endpoint"]].folder / "data" / "output" / file["filename"]
    assert saved.read_bytes() == answer.content


def test_both_servers_are_used(stack: Stack) -> None:
    jobs = [stack.submit(workflow=PICTURE, endpoint=name)["job_id"] for name in ("comfy-a", "comfy-b")]
    assert [stack.result(job)["endpoint"] for job in jobs] == ["comfy-a", "comfy-b"]
    # without a name the least busy server gets the job, so that two long ones run at the same time
    slow = {**PICTURE, "1": {"class_type": "EmptyImage", "inputs": {"width": 2048, "height": 2048, "batch_size": 8, "color": 1}}}
    several = [stack.submit(workflow=slow)["job_id"] for _ in range(4)]
    results = [stack.result(job) for job in several]
    assert {each["status"] for each in results} == {"COMPLETED"}
    assert {each["endpoint"] for each in results} == {"comfy-a", "comfy-b"}


def test_a_value_goes_from_a_step_on_one_server_to_a_step_on_the_other(stack: Stack) -> None:
    port = {"class_type": "YggdrasillGraphOutput", "inputs": {"name": "out", "value": ["1", 0], "type": "IMAGE"}}
    inverted = {
        "1": {"class_type": "YggdrasillGraphInput", "inputs": {"name": "image", "type": "IMAGE"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "YggdrasillGraphOutput", "inputs": {"name": "out", "value": ["2", 0], "type": "IMAGE"}},
    }
    steps = {
        "draw": {"prompt": {"1": PICTURE["1"], "2": port}, "endpoint": "comfy-a"},
        "invert": {"prompt": inverted, "inputs": {"image": {"from": "draw.out"}}, "endpoint": "comfy-b"},
    }
    found = stack.result(stack.submit(workflow={"steps": steps, "outputs": {"picture": "invert.out"}})["job_id"])
    assert found["status"] == "COMPLETED", found["error"]
    picture = found["output"]["picture"]
    assert picture["shape"] == [1, 32, 48, 3]


def test_the_page_answers_and_no_token_is_printed(stack: Stack) -> None:
    assert "<title>Gateway</title>" in requests.get(stack.url + "/", timeout=60).text
    assert requests.get(stack.url + "/v1/jobs", timeout=60).status_code == 401
    assert (
        requests.get(stack.url + "/v1/jobs", headers={"Authorization": f"Bearer {TOKENS['ENDPOINT_TOKEN']}"}, timeout=60).status_code == 401
    )
    for role in stack.roles.values():
        printed = role.log.read_text(encoding="utf-8", errors="replace")
        assert not [value for value in TOKENS.values() if value in printed]
