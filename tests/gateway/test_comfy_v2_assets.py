"""Comfy API v2 of a gateway before two ComfyUIs, by HTTP: assets."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from samples.comfy_v2 import FAR, V2, error_of, hash_of, node, reference
from samples.gateways import GatewayProcess
from samples.http_client import until
from samples.plain_comfy import PNG, PlainComfy


@pytest.fixture(scope="module")
def v2(comfy_gateway: GatewayProcess) -> V2:
    return V2(comfy_gateway)


def test_known_bytes_are_found_by_their_hash_and_not_stored_twice(v2: V2) -> None:
    data = PNG + uuid.uuid4().bytes
    digest = hash_of(data)
    by_hash = f"{v2.gateway.url}/api/v2/assets/by-hash/{digest}"
    assert v2.gateway.session.head(by_hash, timeout=60).status_code == 404
    assert error_of(v2.gateway.post("/api/v2/assets/from-hash", {"hash": digest})) == (404, "blob_not_found")
    answer = v2.upload(data, expected_hash=digest)
    first = answer.json()
    assert (answer.status_code, first["hash"], first["size_bytes"], first["created_new"]) == (201, digest, len(data), True)
    assert (first["content_type"], first["file_path"]) == ("image/png", "photo.png")
    assert v2.gateway.session.head(by_hash, timeout=60).status_code == 200
    again = v2.upload(data)
    assert (again.status_code, again.json()["id"], again.json()["created_new"]) == (200, first["id"], False)
    same = v2.gateway.post("/api/v2/assets/from-hash", {"hash": digest, "file_path": "photo.png"})
    assert (same.status_code, same.json()["id"]) == (200, first["id"])
    other = v2.gateway.post("/api/v2/assets/from-hash", {"hash": digest.upper().replace("BLAKE3", "blake3"), "file_path": "dir/other.png"})
    assert (other.status_code, other.json()["created_new"], other.json()["content_type"]) == (201, False, "image/png")
    assert v2.content(other.json()["id"]).content == data
    assert v2.gateway.get(f"/api/v2/assets/{first['id']}").json()["hash"] == digest


def test_ranges_of_an_asset_are_sent(v2: V2) -> None:
    asset = v2.upload(b"0123456789", "digits.txt", content_type="text/plain").json()
    part = v2.content(asset["id"], Range="bytes=2-5")
    assert (part.status_code, part.content, part.headers["Content-Range"]) == (206, b"2345", "bytes 2-5/10")
    assert v2.content(asset["id"], Range="bytes=50-60").status_code == 416


def test_a_page_in_an_asset_is_not_shown_by_a_browser(v2: V2) -> None:
    asset = v2.upload(b"<script>alert(1)</script>", "page.html", content_type="text/html").json()
    answer = v2.content(asset["id"])
    assert (answer.headers["Content-Type"], asset["content_type"]) == ("application/octet-stream", "text/html")
    assert answer.headers["Content-Disposition"].startswith("attachment")


def test_an_asset_is_the_input_of_a_workflow_and_reaches_each_comfyui_once(v2: V2, comfys: list[PlainComfy]) -> None:
    data = PNG + uuid.uuid4().bytes
    asset = v2.upload(data, "in put.png").json()
    before = sum(len(comfy.uploads) for comfy in comfys)
    for _ in range(4):
        found = v2.run(node("Load", image=reference(asset["id"])))
        assert found["status"] == "succeeded", found
        assert v2.content(found["outputs"][0]["id"]).content == data
    assert sum(len(comfy.uploads) for comfy in comfys) - before <= len(comfys)
    chained = v2.run(node("Load", image=reference(found["outputs"][0]["id"])))
    assert v2.content(chained["outputs"][0]["id"]).content == data
    workflow = v2.gateway.get(f"/api/v2/jobs/{found['id']}/workflow").json()["workflow"]
    assert workflow == node("Load", image=reference(asset["id"]))


def test_an_asset_is_deleted_but_not_while_a_job_needs_it(v2: V2, gate: Path) -> None:
    data = uuid.uuid4().bytes
    first, second = v2.upload(data, "a.bin").json(), v2.upload(data, "b.bin").json()
    delete = v2.gateway.session.delete
    url = f"{v2.gateway.url}/api/v2/assets/"
    prompt = {"1": {"class_type": "Steps", "inputs": {"gate": str(gate)}}, **node("Load", image=reference(first["id"]))}
    job_id = v2.submit(prompt)["id"]
    assert error_of(delete(url + first["id"], timeout=60)) == (409, "asset_in_use")
    gate.touch()
    assert v2.ended(job_id)["status"] == "succeeded"
    assert delete(url + first["id"], timeout=60).status_code == 204
    assert error_of(delete(url + first["id"], timeout=60)) == (404, "not_found")
    assert error_of(v2.content(first["id"])) == (404, "not_found")
    assert v2.content(second["id"]).content == data
    (output,) = v2.job(job_id)["outputs"]
    for asset_id in (second["id"], output["id"]):
        assert delete(url + asset_id, timeout=60).status_code == 204
    assert v2.gateway.session.head(f"{url}by-hash/{hash_of(data)}", timeout=60).status_code == 404
    assert not list((v2.gateway.data_dir / "assets").rglob(blake3(data).hexdigest()))
    assert v2.job(job_id)["outputs"] == []


def test_bytes_with_another_hash_are_refused_and_not_stored(v2: V2) -> None:
    data = uuid.uuid4().bytes
    answer = v2.upload(data, expected_hash=hash_of(b"other"))
    assert error_of(answer) == (409, "hash_mismatch")
    late: dict[str, Any] = {"file": ("x.bin", data), "expected_hash": (None, hash_of(b"other"))}
    answer = v2.gateway.session.post(f"{v2.gateway.url}/api/v2/assets", files=late, timeout=60)
    assert error_of(answer) == (409, "hash_mismatch")
    until(lambda: not list((v2.gateway.data_dir / "assets").rglob(blake3(data).hexdigest())), FAR)
    assert v2.gateway.session.head(f"{v2.gateway.url}/api/v2/assets/by-hash/{hash_of(data)}", timeout=60).status_code == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"expected_hash": "sha256:00"}, {"file_path": "../x"}, {"file_path": "/etc/passwd"}, {"content_type": "nonsense"}, {"expires_in": "5"},
        {"expires_in": "x"}, {"file_path": "x" * 600}, {"tags": "x" * 5000},
    ],
)  # fmt: skip
def test_an_upload_with_a_bad_field_is_refused(v2: V2, fields: dict[str, str]) -> None:
    data = uuid.uuid4().bytes
    answer = v2.upload(data, **fields)
    assert error_of(answer) == (422, "invalid_request")
    until(lambda: not list((v2.gateway.data_dir / "assets").rglob(blake3(data).hexdigest())), FAR)


@pytest.mark.parametrize(
    "content_type, body",
    [
        ("application/json", b"{}"), ("multipart/form-data", b"x"), ("multipart/form-data; boundary=b", b"--b\r\nnonsense"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nhalf'),
    ],
)  # fmt: skip
def test_a_body_that_is_not_a_form_is_refused(v2: V2, content_type: str, body: bytes) -> None:
    answer = v2.gateway.session.post(f"{v2.gateway.url}/api/v2/assets", data=body, headers={"Content-Type": content_type}, timeout=60)
    assert error_of(answer) == (400, "invalid_request")


def test_a_form_without_a_file_is_refused(v2: V2) -> None:
    answer = v2.gateway.session.post(f"{v2.gateway.url}/api/v2/assets", files={"file_path": (None, "x")}, timeout=60)
    assert error_of(answer) == (422, "invalid_request")


@pytest.mark.parametrize("body", [{}, {"hash": 3}, {"hash": "blake3:12"}, {"hash": hash_of(b""), "expires_in": True}])
def test_a_bad_hash_is_refused(v2: V2, body: Any) -> None:
    assert error_of(v2.gateway.post("/api/v2/assets/from-hash", body)) == (422, "invalid_request")


@pytest.mark.parametrize("path", ["", "/content"])
def test_an_unknown_asset_is_404(v2: V2, path: str) -> None:
    for name in (str(uuid.uuid4()), "%00", "a%0Ab"):
        assert error_of(v2.gateway.get(f"/api/v2/assets/{name}{path}")) == (404, "not_found")
