"""The entry point of a RunPod image: ``python rp_handler.py serverless``, or with RUNPOD_SERVERLESS=1 without an argument.

Further arguments are those of RunPod's SDK, such as ``--rp_serve_api``. Any other first argument is one of ``yggdrasill worker``.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main", "serverless"]

_TRUE = ("1", "true", "yes")


def serverless(arguments: Sequence[str] = ()) -> int:
    """Run as a RunPod worker until the SDK ends, and return the exit code. ``arguments`` are those of the SDK."""
    _bind_package()
    from yggdrasill.cli import main as run_command

    return run_command(["worker", "serverless", *arguments])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as ``serverless`` or as a command, and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["serverless"]:
        return serverless(given[1:])
    if os.environ.get("RUNPOD_SERVERLESS", "").lower() in _TRUE and given[:1] != ["cli"]:
        return serverless(given)
    _bind_package()
    from yggdrasill.cli import main as run_command

    return run_command(["worker", *given])


def _bind_package() -> None:
    """Make this checkout importable as ``yggdrasill`` if it is run as a script and not installed."""
    folder = Path(__file__).resolve().parent
    # the folder of a script is searched first, and its modules have common names
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    if "yggdrasill" in sys.modules or importlib.util.find_spec("yggdrasill") is not None:
        return
    spec = importlib.util.spec_from_file_location("yggdrasill", folder / "__init__.py", submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is not the package yggdrasill")
    module = importlib.util.module_from_spec(spec)
    sys.modules["yggdrasill"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    sys.exit(main())
