"""The typed requests: every one of them, bad input, and results that are too large."""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from samples.small_server import small_server
from yggdrasill.errors import YggdrasillError
from yggdrasill.worker.requests import REQUESTS, parse_request
from yggdrasill.worker.service import WorkerService


async def ask(worker: WorkerService, **given: Any) -> dict[str, Any]:
    return await worker.handle({"id": "job", "input": given})


def picture(size: tuple[int, int] = (8, 6), color: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (color, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def test_the_table_has_every_type_of_request() -> None:
    expected = "generate train train_with_yaml processes process_status cancel lora list_models list_files upload_training_data download download_file bulk_download health endpoint"
    assert set(REQUESTS) == set(expected.split())


@pytest.mark.parametrize("field", ["prompt", "workflow", "workflow_url", "graph_id"])
def test_an_input_without_a_type_is_generate(field: str) -> None:
    assert parse_request({field: "x"})[0] == "generate"


@pytest.mark.parametrize(
    "given, code",
    [
        (None, "invalid_input"),
        ([], "invalid_input"),
        ("x", "invalid_input"),
        ({}, "missing_type"),
        ({"version_id": "x"}, "missing_type"),
        ({"type": "trian"}, "unknown_type"),
        ({"type": 3}, "unknown_type"),
        ({"type": "cancel"}, "invalid_input"),
        ({"type": "cancel", "process_id": 3}, "invalid_input"),
        ({"type": "cancel", "process_id": "nobody"}, "invalid_process_id"),
        ({"type": "process_status", "process_id": "000000000000-00000000"}, "unknown_process"),
        ({"type": "list_files", "path": "../.."}, "path_outside_workspace"),
        ({"type": "list_files", "path": "/etc"}, "path_outside_workspace"),
        ({"type": "list_files", "paht": "x"}, "invalid_input"),
        ({"type": "download_file", "path": "output/none"}, "unknown_file"),
        ({"type": "download_file", "path": "output"}, "not_a_file"),
        ({"type": "download_file", "path": "output/a.bin", "offset": 99}, "invalid_offset"),
        ({"type": "download_file", "path": "output/a.bin", "offset": -1}, "invalid_input"),
        ({"type": "download_file", "path": "output/a.bin", "version": "x"}, "file_changed"),
        ({"type": "download"}, "invalid_input"),
        ({"type": "download", "path": "output", "process_id": "x"}, "invalid_input"),
        ({"type": "download", "path": "logs"}, "unknown_file"),
        ({"type": "download", "path": "output", "output_mode": "gcs"}, "no_bucket"),
        ({"type": "download", "path": "output", "output_mode": "ftp"}, "invalid_input"),
        ({"type": "download", "path": "output", "output_mode": "s3", "s3_bucket": "results"}, "no_credentials"),
        ({"type": "bulk_download", "paths": []}, "invalid_input"),
        ({"type": "bulk_download", "paths": ["../x"]}, "path_outside_workspace"),
        ({"type": "bulk_download", "paths": ["training_data"]}, "unknown_file"),
        ({"type": "lora", "action": "info"}, "invalid_input"),
        ({"type": "lora", "path": "output/a.bin"}, "unsupported_format"),
        ({"type": "upload_training_data", "dataset": "cats"}, "no_training_data"),
        ({"type": "upload_training_data", "dataset": "../x", "files": [{"name": "a.png", "data": ""}]}, "invalid_name"),
        ({"type": "train_with_yaml"}, "invalid_input"),
        ({"type": "train_with_yaml", "yaml": "x: ["}, "invalid_training_config"),
        ({"type": "train_with_yaml", "yaml": "a: ${HF_TOKEN}"}, "invalid_training_config"),
        ({"type": "train", "name": "x", "dataset": "cats", "model": "someone/else"}, "unknown_file"),
        ({"workflow": {"1": {"class_type": "X", "inputs": {}}}, "version_id": "nothing"}, "unknown_version"),
        ({"workflow": {"1": {"class_type": "X", "inputs": {}}}, "version_id": "../x"}, "invalid_input"),
        ({"prompt": "a cat"}, "version_required"),
        ({"type": "generate"}, "version_required"),
    ],
)
async def test_bad_input_is_one_clear_error_with_a_code_and_changes_nothing(worker: WorkerService, given: Any, code: str) -> None:
    (worker.workspace.output / "a.bin").write_bytes(b"0123456789")
    before = files_of(worker)
    result = await worker.handle({"id": "job", "input": given})
    assert result.get("code") == code, result
    assert isinstance(result["error"], str)
    assert str(worker.workspace.root.parent) not in json.dumps(result)
    assert files_of(worker) == before


def files_of(worker: WorkerService) -> dict[str, bytes]:
    root = worker.workspace.root
    return {path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else b"" for path in root.rglob("*")}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(REQUESTS)),
    st.dictionaries(st.sampled_from(sorted({name for model in REQUESTS.values() for name in model.model_fields})), json_values, max_size=4),
)
def test_any_input_is_a_request_or_an_error_of_ours(kind: str, fields: dict[str, Any]) -> None:
    try:
        parse_request({**fields, "type": kind})
    except YggdrasillError as error:
        message = str(error)
    else:
        message = ""
    assert len(message) < 20_000


def test_a_mistake_names_the_field_and_not_its_value() -> None:
    with pytest.raises(YggdrasillError) as caught:
        parse_request({"type": "train", "name": "x", "dataset": "y", "model": "z", "stpes": 3, "rank": "planted-secret"})
    assert "Unknown field 'stpes'." in caught.value.message
    assert "Did you mean 'steps'?" in caught.value.message
    assert "rank: " in caught.value.message
    assert "planted" not in json.dumps(caught.value.to_dict())


async def test_health_reports_the_three_times_and_what_runs(worker: WorkerService) -> None:
    result = await worker.handle({"id": "job", "input": {"type": "health"}, "submitted": 0})
    assert result["status"] == "ok"
    assert set(result["timing"]) >= {"queue", "boot", "load"}
    assert result["timing"]["queue"] > 1e9
    assert result["trainers"] == {"ai-toolkit": True}
    assert result["comfy"] == {"running": False, "crashes": 0}


async def test_files_are_listed_without_links_and_hidden_ones(worker: WorkerService) -> None:
    output = worker.workspace.output
    (output / "sub").mkdir()
    for name in ("b.txt", "sub/a.txt", ".hidden"):
        (output / name).write_bytes(b"xyz")
    (output / "link").symlink_to("/etc/passwd")
    result = await ask(worker, type="list_files", path="output")
    assert [(entry["path"], entry["size"]) for entry in result["files"]] == [("output/b.txt", 3), ("output/sub/a.txt", 3)]
    assert result["total_size"] == 6
    assert (await ask(worker, type="list_files", path="output", limit=1))["truncated"]
    assert len((await ask(worker, type="list_files", path="output", recursive=False))["files"]) == 1


async def test_a_file_is_downloaded_in_pieces(worker: WorkerService) -> None:
    data = bytes(range(256)) * 100
    (worker.workspace.output / "a.bin").write_bytes(data)
    whole = await ask(worker, type="download_file", path="output/a.bin")
    assert (base64.b64decode(whole["base64"]), whole["next_offset"], whole["size"]) == (data, None, len(data))
    pieces, offset, version = b"", 0, None
    while offset is not None:
        piece = await ask(worker, type="download_file", path="output/a.bin", offset=offset, length=10_000, version=version)
        pieces, offset, version = pieces + base64.b64decode(piece["base64"]), piece["next_offset"], piece["version"]
    assert pieces == data


async def test_an_empty_file_is_downloaded(worker: WorkerService) -> None:
    (worker.workspace.output / "empty").touch()
    result = await ask(worker, type="download_file", path="output/empty")
    assert (result["base64"], result["next_offset"]) == ("", None)


async def test_a_zip_is_downloaded_in_pieces_from_two_workers(worker: WorkerService, start: Callable[..., Any]) -> None:
    for name in ("one.txt", "two.bin"):
        (worker.workspace.output / name).write_bytes(name.encode() * 5000)
    (worker.workspace.output / "link").symlink_to("/etc/passwd")
    other = await start(worker_id="other")
    given = {"type": "bulk_download", "paths": ["output", "output/one.txt"], "chunk_size": 30_000}
    first = await ask(worker, **given)
    archive = next((worker.workspace.output / ".archives").iterdir())
    kept = archive.read_bytes()
    archive.unlink()
    data, offset = base64.b64decode(first["base64"]), first["next_offset"]
    while offset is not None:
        piece = await ask(other, **given, offset=offset, version=first["version"])
        data, offset = data + base64.b64decode(piece["base64"]), piece["next_offset"]
    assert data == kept
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        assert {name: found.read(name) for name in found.namelist()} == {
            f"output/{name}": name.encode() * 5000 for name in ("one.txt", "two.bin")
        }
    (worker.workspace.output / "one.txt").write_bytes(b"new")
    assert (await ask(other, **given, offset=10, version=first["version"]))["code"] == "file_changed"


async def test_download_returns_small_files_inline_and_refers_to_large_ones(start: Callable[..., Any]) -> None:
    worker = await start(payload_limit=20_000)
    (worker.workspace.output / "small.txt").write_bytes(b"small")
    (worker.workspace.output / "large.bin").write_bytes(b"x" * 50_000)
    result = await ask(worker, type="download", path="output")
    by_name = {entry["filename"]: entry for entry in result["files"]}
    assert base64.b64decode(by_name["small.txt"]["base64"]) == b"small"
    assert by_name["large.bin"] == {
        "filename": "large.bin",
        "kind": "file",
        "size": 50_000,
        "media_type": "application/octet-stream",
        "path": "output/large.bin",
        "spilled": True,
    }
    piece = await ask(worker, type="download_file", path=by_name["large.bin"]["path"])
    assert piece["next_offset"] is not None


async def test_a_result_that_no_way_can_return_is_refused_and_the_file_kept(start: Callable[..., Any]) -> None:
    worker = await start(payload_limit=20_000, shared=False)
    (worker.workspace.output / "large.bin").write_bytes(b"x" * 50_000)
    result = await ask(worker, type="download", path="output")
    assert result["code"] == "result_too_large"
    assert result["details"] == {"limit": 20_000}
    assert (worker.workspace.output / "large.bin").is_file()


async def test_a_long_list_is_returned_by_reference(start: Callable[..., Any]) -> None:
    worker = await start(payload_limit=20_000)
    for number in range(600):
        (worker.workspace.output / f"{number:04}.txt").touch()
    result = await ask(worker, type="list_files", path="output")
    assert result["spilled"]
    kept = json.loads((worker.workspace.root / result["path"]).read_text(encoding="utf-8"))
    assert len(kept["files"]) == 600


# -- training data ----------------------------------------------------------------------------------------------------


async def test_training_data_is_uploaded_with_captions_and_validated(worker: WorkerService) -> None:
    with small_server({"/pics/c.png": picture((20, 10), 3), "/broken.jpg": b"no image"}) as url:
        result = await ask(
            worker,
            type="upload_training_data",
            dataset="cats",
            files=[
                {"name": "a.png", "data": text_of(picture()), "caption": "a cat"},
                {"name": "b.png", "data": "data:image/png;base64," + text_of(picture((4, 4), 9))},
                {"name": "d.exe", "data": text_of(b"MZ")},
                {"name": "../e.png", "data": text_of(picture())},
                {"name": "a.png", "data": text_of(picture())},
                {"name": "f.png", "data": "%%%"},
            ],
            urls=[f"{url}/pics/c.png?x=1", {"url": f"{url}/broken.jpg"}, f"{url}/none.png", "ftp://x/y.png"],
            captions={"c": "by its stem", "b.png": "by its name"},
        )
    assert result["files"] == ["a.png", "a.txt", "b.png", "b.txt", "c.png", "c.txt"], result
    validation = result["validation"]
    assert (validation["images"], validation["captions"], validation["without_caption"]) == (3, 3, [])
    assert (validation["smallest"], validation["largest"]) == ([4, 4], [20, 10])
    codes = {entry["name"]: entry["code"] for entry in validation["rejected"]}
    assert codes == {
        "d.exe": "unsupported_format", "../e.png": "invalid_name", "a.png": "duplicate_name", "f.png": "invalid_base64",
        "broken.jpg": "unreadable_file", "none.png": "fetch_failed", "y.png": "invalid_url",
    }  # fmt: skip
    folder = worker.workspace.training_data / "cats"
    assert (folder / "c.txt").read_text(encoding="utf-8") == "by its stem"
    assert [path.name for path in worker.workspace.training_data.iterdir()] == ["cats"]


async def test_a_failed_upload_leaves_the_data_set_as_it_was(worker: WorkerService) -> None:
    await ask(worker, type="upload_training_data", dataset="cats", files=[{"name": "a.png", "data": text_of(picture())}])
    before = files_of(worker)
    result = await ask(worker, type="upload_training_data", dataset="cats", files=[{"name": "b.png", "data": text_of(b"no")}], replace=True)
    assert result["code"] == "no_training_data"
    assert result["details"]["errors"][0]["name"] == "b.png"
    assert files_of(worker) == before


async def test_a_data_set_is_extended_or_replaced(worker: WorkerService) -> None:
    async def upload(name: str, **more: Any) -> list[str]:
        files = [{"name": name, "data": text_of(picture()), "caption": ""}]
        result = await ask(worker, type="upload_training_data", dataset="cats", files=files, **more)
        return list(result["files"])

    assert await upload("a.png") == ["a.png", "a.txt"]
    assert await upload("b.png") == ["a.png", "a.txt", "b.png", "b.txt"]
    assert await upload("c.png", replace=True) == ["c.png", "c.txt"]


async def test_urls_inside_the_network_are_rejected(start: Callable[..., Any]) -> None:
    worker = await start(private_urls=False)
    with small_server({"/a.png": picture()}) as url:
        result = await ask(worker, type="upload_training_data", dataset="cats", urls=[f"{url}/a.png"])
    assert result["code"] == "no_training_data"
    assert result["details"]["errors"][0]["code"] == "private_url"


# -- models -----------------------------------------------------------------------------------------------------------


def lora_file(keys: list[str]) -> bytes:
    tensors = {
        key: {"dtype": "F32", "shape": [4, 8], "data_offsets": [number * 128, number * 128 + 128]} for number, key in enumerate(keys)
    }
    header = json.dumps({**tensors, "__metadata__": {"ss_network_dim": "4"}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(128 * len(keys))


KOHYA = lora_file(["lora_unet_down_blocks_0.lora_down.weight", "lora_unet_down_blocks_0.lora_up.weight", "lora_unet_down_blocks_0.alpha"])
DIFFUSERS = lora_file(["unet.down_blocks.0.lora.down.weight", "unet.down_blocks.0.lora.up.weight"])
FLUX = lora_file(
    ["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight"]
)
WAN = lora_file(["transformer.blocks.0.attn1.to_q.lora_A.weight", "transformer.blocks.0.attn1.to_q.lora_B.weight"])


@pytest.mark.parametrize(
    "data, scheme, applies",
    [
        (KOHYA, "kohya", True),
        (DIFFUSERS, "diffusers-unet", False),
        (FLUX, "diffusers-transformer", True),
        (WAN, "diffusers-transformer", False),
    ],
)
async def test_a_lora_is_described_and_installed_only_if_comfyui_would_apply_it(
    worker: WorkerService, data: bytes, scheme: str, applies: bool
) -> None:
    (worker.workspace.output / "cat.safetensors").write_bytes(data)
    facts = await ask(worker, type="lora", path="output/cat.safetensors")
    assert (facts["scheme"], facts["applies"], facts["modules"], facts["rank"]) == (scheme, applies, 1, 4)
    result = await ask(worker, type="lora", action="install", path="output/cat.safetensors", name="cat")
    installed = worker.settings.models_dir / "loras" / "cat.safetensors"
    if not applies:
        assert result["code"] == "lora_applies_nothing"
        assert not installed.exists()
        return
    assert result["installed"]
    assert installed.read_bytes() == data
    assert (await ask(worker, type="lora"))["loras"] == [{"name": "cat.safetensors", "size": len(data)}]
    assert (await ask(worker, type="lora", action="install", path="output/cat.safetensors"))["code"] == "duplicate_name"
    assert (await ask(worker, type="list_models"))["models"] == {"loras": [{"name": "cat.safetensors", "size": len(data)}]}


@pytest.mark.parametrize(
    "data", [b"", b"x" * 100, struct.pack("<Q", 1 << 40) + b"{}", lora_file(["model.weight"]), struct.pack("<Q", 2) + b"[]"]
)
async def test_a_file_that_is_no_lora_is_refused(worker: WorkerService, data: bytes) -> None:
    (worker.workspace.output / "cat.safetensors").write_bytes(data)
    result = await ask(worker, type="lora", path="output/cat.safetensors")
    assert result["code"] in ("corrupt_data", "not_a_lora")


async def test_models_are_listed_by_kind_with_those_of_the_workspace_and_links(worker: WorkerService) -> None:
    models = worker.settings.models_dir
    (models / "checkpoints" / "sd").mkdir(parents=True)
    (models / "checkpoints" / "sd" / "a.safetensors").write_bytes(b"12")
    (models / "checkpoints" / "note.txt").write_bytes(b"1")
    (models / "checkpoints" / "linked.gguf").symlink_to(models / "checkpoints" / "sd" / "a.safetensors")
    (worker.workspace.models / "loras").mkdir()
    (worker.workspace.models / "loras" / "b.safetensors").write_bytes(b"123")
    result = await ask(worker, type="list_models")
    assert {kind: [entry["name"] for entry in entries] for kind, entries in result["models"].items()} == {
        "checkpoints": ["linked.gguf", "sd/a.safetensors"],
        "loras": ["b.safetensors"],
    }
    assert list((await ask(worker, type="list_models", kind="loras"))["models"]) == ["loras"]


async def test_refresh_is_passed_to_the_sdk(worker: WorkerService) -> None:
    assert (await ask(worker, type="health", refresh_worker=True))["refresh_worker"] is True
    assert "refresh_worker" not in await ask(worker, type="health")
