"""Binds this checkout to the name ``yggdrasill``, whatever its folder is called, here and in the processes tests start."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

__all__ = ["ROOT", "bind_checkout", "bind_children"]

ROOT = Path(__file__).resolve().parent.parent


def bind_checkout() -> None:
    """Load the root ``__init__.py`` as ``yggdrasill`` unless that name is this checkout already."""
    loaded = sys.modules.get("yggdrasill")
    if loaded is not None and Path(str(loaded.__file__)).resolve() == ROOT / "__init__.py":
        return
    spec = importlib.util.spec_from_file_location("yggdrasill", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["yggdrasill"] = module
    spec.loader.exec_module(module)


def bind_children() -> None:
    """Make started processes find the same checkout, through a link beside it if it is not the installed one."""
    found = importlib.util.find_spec("yggdrasill")
    if found is not None and found.origin is not None and Path(found.origin).resolve() == ROOT / "__init__.py":
        return
    link = ROOT / ".link" / "yggdrasill"
    if not link.exists():
        link.parent.mkdir(exist_ok=True)
        link.symlink_to("..", target_is_directory=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(link.parent), os.environ.get("PYTHONPATH")]))


bind_children()
bind_checkout()
