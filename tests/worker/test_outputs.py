"""Outputs of a workflow as entries of a result."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from yggdrasill.errors import PayloadTooLarge
from yggdrasill.worker.outputs import OutputFile, ResultWriter, collect, json_bytes, kind_of
from yggdrasill.worker.workspace import Workspace


class Recorder:
    """A bucket that keeps what is put into it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    async def check(self) -> None:
        """Accept everything."""

    async def put(self, path: Path, name: str, media_type: str) -> dict[str, Any]:
        self.files[name] = await asyncio.to_thread(path.read_bytes)
        return {"gcs_url": f"gs://bucket/{name}"}


def writer(workspace: Workspace, *, bucket: Any = None, spill: Any = None, limit: int = 10_000, shared: bool = True) -> ResultWriter:
    return ResultWriter(workspace, "job", bucket=bucket, spill=spill, limit=limit, shared=shared)


def file(workspace: Workspace, name: str, size: int) -> OutputFile:
    path = workspace.output / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return OutputFile(path, name, "9")


@pytest.mark.parametrize(
    "name, kind",
    [
        ("a.PNG", "image"),
        ("a.webm", "video"),
        ("a.flac", "audio"),
        ("a.glb", "3d"),
        ("a.txt", "text"),
        ("a.latent", "weights"),
        ("a", "file"),
    ],
)
def test_the_suffix_decides_the_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_any_list_with_filenames_is_collected_and_temporary_files_only_without_others(workspace: Workspace, tmp_path: Path) -> None:
    folders = {"output": workspace.output, "temp": tmp_path / "temp"}
    folders["temp"].mkdir()
    file(workspace, "sub/a.mp4", 3)
    (folders["temp"] / "t.png").write_bytes(b"t")
    outputs = {
        "1": {"gifs": [{"filename": "a.mp4", "subfolder": "sub", "type": "output"}], "animated": [True], "strings": ["words"]},
        "2": {"images": [{"filename": "t.png", "subfolder": "", "type": "temp"}, {"filename": "x", "subfolder": "", "type": "elsewhere"}]},
        "3": {"images": [{"filename": "../../x", "subfolder": "..", "type": "output"}]},
        "4": None,
    }
    files, missing = collect(outputs, folders, workspace.output / "text", "job")
    assert [(each.name, each.node_id, each.text) for each in files] == [("sub/a.mp4", "1", None), ("job-1-0.txt", "1", "words")]
    assert missing == ["x", "../../x"]
    files, _ = collect({"2": outputs["2"]}, folders, workspace.output / "text", "job")
    assert [(each.name, each.temporary) for each in files] == [("t.png", True)]


async def test_the_smallest_files_are_inline_and_the_result_fits(workspace: Workspace) -> None:
    files = [file(workspace, f"{size}.bin", size) for size in (5000, 100, 2000)]
    entries = await writer(workspace).entries(files, used=500)
    assert [("base64" in entry, entry.get("path")) for entry in entries] == [(False, "output/5000.bin"), (True, None), (True, None)]
    assert base64.b64decode(entries[1]["base64"]) == b"x" * 100
    assert json_bytes(entries) + 500 <= 10_000


async def test_what_does_not_fit_goes_into_the_bucket_of_the_settings(workspace: Workspace) -> None:
    bucket = Recorder()
    entries = await writer(workspace, spill=bucket, shared=False).entries([file(workspace, "a.bin", 20_000)])
    assert entries[0]["spilled"]
    assert bucket.files == {"job/a.bin": b"x" * 20_000}


async def test_files_of_one_name_get_names_of_their_own_in_a_bucket(workspace: Workspace) -> None:
    bucket = Recorder()
    files = [file(workspace, "a.png", 1), OutputFile(file(workspace, "other/a.png", 2).path, "a.png", "3")]
    entries = await writer(workspace, bucket=bucket).entries(files)
    assert {name: len(data) for name, data in bucket.files.items()} == {"job/a.png": 1, "job/a-2.png": 2}
    assert "spilled" not in entries[0]


async def test_a_large_temporary_file_is_kept_in_the_workspace(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "t.png").write_bytes(b"x" * 20_000)
    entries = await writer(workspace).entries([OutputFile(tmp_path / "t.png", "t.png", "1", temporary=True)])
    assert (workspace.root / entries[0]["path"]).read_bytes() == b"x" * 20_000


async def test_a_result_without_any_way_is_refused(workspace: Workspace) -> None:
    with pytest.raises(PayloadTooLarge) as caught:
        await writer(workspace, shared=False).entries([file(workspace, "a.bin", 20_000)])
    assert caught.value.details["code"] == "result_too_large"
    with pytest.raises(PayloadTooLarge):
        await writer(workspace, shared=False).whole({"a": "x" * 20_000})
