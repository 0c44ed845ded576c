"""The unmodified ``comfy-sdk`` in an environment of its own, with a gateway in the place of Comfy Cloud."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from samples.gateways import GATEWAY_TOKEN, GatewayProcess

__all__ = ["ComfySdk", "comfy_sdk_python"]

ROOT = Path(__file__).resolve().parent.parent.parent
_PRELUDE = """
import json, sys, time
from comfy_sdk import *
from comfy_sdk.exceptions import *
given = json.loads(sys.argv[1])

def answer(value):
    print("RESULT" + json.dumps(value), flush=True)

client = Comfy()
"""


@functools.lru_cache(maxsize=1)
def _found() -> Path | None:
    beside = ROOT / ".venv-serverless" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    named = os.environ.get("COMFY_SDK_PYTHON")
    for python in [Path(named).expanduser()] if named else [beside, Path(sys.executable)]:
        if python.is_file() and subprocess.run([str(python), "-c", "import comfy_sdk"], capture_output=True, check=False).returncode == 0:
            return python
    return None


def comfy_sdk_python() -> Path:
    """Return the Python with the SDK; skip the test where there is none."""
    found = _found()
    if found is None:
        pytest.skip(
            "NO COMFY SDK FOUND, SO COMFY API V2 IS NOT TESTED WITH IT: run 'make serverless', or install comfy-sdk and set COMFY_SDK_PYTHON"
        )
    return found


class ComfySdk:
    """Runs programs of the SDK's users for one gateway."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._python, self._gateway = comfy_sdk_python(), gateway

    def begin(self, program: str, given: Any = None, **variables: str) -> subprocess.Popen[str]:
        """Start a program: ``client`` is a `Comfy`, ``given`` the value, and ``answer(VALUE)`` passes a result to `end`."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "SYSTEMROOT") if name in os.environ}
        environment = {**kept, "COMFY_BASE_URL": self._gateway.url, "COMFY_API_KEY": GATEWAY_TOKEN, **variables}
        command = [str(self._python), "-c", _PRELUDE + program, json.dumps(given)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(self, process: subprocess.Popen[str]) -> list[Any]:
        """Wait for the end of a program, and return its results."""
        printed, problem = process.communicate(timeout=170)
        assert process.returncode == 0, problem[-3000:]
        return [json.loads(line.removeprefix("RESULT")) for line in printed.splitlines() if line.startswith("RESULT")]

    def run(self, program: str, given: Any = None, **variables: str) -> Any:
        """Run a program, and return its last result."""
        return self.end(self.begin(program, given, **variables))[-1]
