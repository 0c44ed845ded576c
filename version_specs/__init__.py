"""Version specs: which ComfyUI, models, custom nodes and packages a worker needs, and how they are fetched, checked and linked.

A spec is a ``comfy-build/1`` document, ``versions/<id>.json``. `load_version` finds it, `verify_version` makes this machine ready for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yggdrasill.version_specs.model import CustomNode, Definition, InputTarget, ModelFile, VersionSpec, YggdrasillPart
    from yggdrasill.version_specs.places import cache_root, comfy_home, models_folder
    from yggdrasill.version_specs.plan import VerifyOptions
    from yggdrasill.version_specs.store import available_versions, load_version, read_spec, version_folders, write_spec
    from yggdrasill.version_specs.verify import VerifyReport, verify_version

__all__ = [
    "CustomNode",
    "Definition",
    "InputTarget",
    "ModelFile",
    "VerifyOptions",
    "VerifyReport",
    "VersionSpec",
    "YggdrasillPart",
    "available_versions",
    "cache_root",
    "comfy_home",
    "load_version",
    "models_folder",
    "read_spec",
    "verify_version",
    "version_folders",
    "write_spec",
]

_MODULES = {
    "model": ("CustomNode", "Definition", "InputTarget", "ModelFile", "VersionSpec", "YggdrasillPart"),
    "plan": ("VerifyOptions",),
    "places": ("cache_root", "comfy_home", "models_folder"),
    "store": ("available_versions", "load_version", "read_spec", "version_folders", "write_spec"),
    "verify": ("VerifyReport", "verify_version"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
