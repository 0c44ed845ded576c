"""`compat` in a real server: arguments that would end ComfyUI's process or worker are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from samples.comfy import Servers, make_base_directory
from yggdrasill.server_ext.comfy import compat

SCRIPT = Path(__file__).with_name("abuse_compat.py")


@pytest.mark.parametrize(
    "version, fits",
    [
        ("0.33.0", True),
        ("0.26", True),
        ("v0.26.1", True),
        ("1.0.0", True),
        ("0.26.0rc1", True),
        ("0.25.0", False),
        ("0.3.64", False),
        ("v0.3.64", False),
        ("nightly", False),
    ],
)
def test_comfyui_versions_are_compared_by_numbers(version: str, fits: bool) -> None:
    assert (compat.version_problem(version) is None) is fits


def test_the_message_for_an_old_comfyui_says_to_update() -> None:
    said = compat.version_problem("0.3.64")
    assert said is not None
    assert "ComfyUI 0.3.64" in said
    assert "0.26" in said
    assert "Update ComfyUI" in said
    assert "older than 0.26" in str(compat.version_problem(None))


@pytest.mark.parametrize(
    "version, is_noted", [(None, False), ("0.26.0", False), ("0.33.9", False), ("0.34.0", True), ("0.46.1", True), ("1.0", True)]
)
def test_a_comfyui_newer_than_the_tested_ones_is_noted_and_not_refused(version: str | None, is_noted: bool) -> None:
    note = compat.version_note(version)
    assert (note is not None) is is_noted
    if note is not None:
        assert "tested with 0.26 to 0.33" in note
        assert compat.version_problem(version) is None


def test_arguments_that_would_end_comfyui_are_refused(servers: Servers) -> None:
    base = make_base_directory(servers.folder / "abused")
    pack = base / "custom_nodes" / "abuse"
    pack.mkdir()
    (pack / "__init__.py").write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    server = servers.start(base=base)
    refused = server.get("/abuse")
    assert refused == {
        "bytes as a message": "InvalidArgument",
        "a set in a message": "InvalidArgument",
        "a tensor in a message": "InvalidArgument",
        "a number as the message's name": "InvalidArgument",
        "text as a preview": "InvalidArgument",
        "a prompt with a tensor": "InvalidArgument",
        "a prompt without outputs": "InvalidArgument",
        "no number as the place in the queue": "InvalidArgument",
        "a listener that raises": None,
        "a good preview": None,
    }
    assert server.alive
    entry = server.run(
        {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 1}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }
    )
    assert entry["status"]["status_str"] == "success"
    server.stop()


def test_an_old_comfyui_logs_one_line_and_starts(servers: Servers) -> None:
    """Only the version that ComfyUI reports is old; the loader is the real one."""
    base = make_base_directory(servers.folder / "old")
    folder = base / "old"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys, types\nold = types.ModuleType('comfyui_version')\nold.__version__ = '0.3.64'\nsys.modules['comfyui_version'] = old\n",
        encoding="utf-8",
    )
    server = servers.start(base=base, environment={"PYTHONPATH": str(folder)})
    lines = [line for line in server.printed().splitlines() if "Yggdrasill" in line]
    server.stop()
    assert len(lines) == 1, lines
    assert "This is ComfyUI 0.3.64, but Yggdrasill requires 0.26 or later." in lines[0]
    assert json.dumps(lines).count("Traceback") == 0
