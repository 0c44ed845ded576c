"""The comparison of torch builds: like with like, also in a process that has not imported torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from yggdrasill.remote import contract
from yggdrasill.remote.contract import other_build

OF_THIS_PROCESS = {"version": str(torch.__version__), "git": torch.version.git_version, "cuda": torch.version.cuda}


def test_equal_builds_are_equal_without_importing_torch() -> None:
    lines = (
        "import json, sys",
        "from yggdrasill.remote.contract import other_build",
        "print(json.dumps([other_build(json.loads(sys.argv[1])), 'torch' in sys.modules]))",
    )
    found = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), json.dumps(OF_THIS_PROCESS)], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(found.stdout) == ["", False]


def test_another_build_is_described() -> None:
    assert other_build(OF_THIS_PROCESS) == ""
    assert "version 0.1+cu1 on the endpoint" in other_build({**OF_THIS_PROCESS, "version": "0.1+cu1"})
    assert "git abc on the endpoint" in other_build({**OF_THIS_PROCESS, "git": "abc"})
    assert other_build(None) == ""


@pytest.mark.parametrize("remote, is_other", [("2.14.1+cu130", False), ("2.14.1", False), ("2.14.0+cu130", True)])
def test_a_release_without_its_label_is_compared_with_the_release(monkeypatch: pytest.MonkeyPatch, remote: str, is_other: bool) -> None:
    monkeypatch.setattr(contract, "_own_build", lambda: {"release": "2.14.1"})
    assert bool(other_build({"version": remote, "git": "abc"})) is is_other


def test_the_installed_build_is_read_from_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.14.1+cu130'\ncuda: Optional[str] = '13.0'\ngit_version: str = 'abc'\n",
        encoding="utf-8",
    )
    spec = type("Spec", (), {"submodule_search_locations": [str(package)]})
    monkeypatch.setattr(contract, "find_spec", lambda name: spec)
    assert contract._installed_build.__wrapped__() == {"version": "2.14.1+cu130", "git": "abc"}
    (package / "version.py").unlink()
    monkeypatch.setattr(contract, "version", lambda name: "2.14.1+cpu")
    assert contract._installed_build.__wrapped__() == {"release": "2.14.1"}
