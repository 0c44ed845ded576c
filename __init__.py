"""Yggdrasill: any graph of a project on its own server, with the result bit for bit the local one.

The repository root is this package. ComfyUI executes the file under a name derived from its path, so the first lines
bind it to its one canonical name; everything else imports ``yggdrasill.*`` absolutely. Importing the package pulls in
neither torch, aiohttp nor ComfyUI: the public names are resolved on first use.
"""

import os.path
import sys

_module = sys.modules[__name__]
if hasattr(_module, "__path__"):
    _owner = sys.modules.setdefault("yggdrasill", _module)
    if os.path.realpath(_owner.__file__ or "") != os.path.realpath(_module.__file__ or ""):
        raise ImportError(
            f"two copies of yggdrasill: {_owner.__file__} is loaded and {_module.__file__} wants the same name; remove one of them"
        )

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Where ComfyUI finds what its editor loads with the page; it loads the rest of the folder ``web`` when needed.
WEB_DIRECTORY = "./web/start"

#: The module that registers each built-in kind when it is imported, read by `yggdrasill.foundation.kinds`. The root package is above
#: every layer, so it may name them all; it is a table and no entry point because ComfyUI loads a checkout without metadata.
KIND_MODULES = {
    "graph": "yggdrasill.foundation.graph",
    "pipeline": "yggdrasill.pipeline.pipeline",
    "stage": "yggdrasill.stage.stage",
    "world": "yggdrasill.world.world",
    "comfy": "yggdrasill.remote.kinds",
    "remote": "yggdrasill.remote.kinds",
}

if TYPE_CHECKING:
    from yggdrasill.executor import current_run, run
    from yggdrasill.executor import run as run_graph
    from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Edge, Graph, Node, Port, register_block
    from yggdrasill.pipeline import Pipeline
    from yggdrasill.remote import RemoteGraph
    from yggdrasill.stage import Stage, State
    from yggdrasill.world import World

_PUBLIC = {
    "AbstractBaseBlock": "yggdrasill.foundation:AbstractBaseBlock",
    "BlockRegistry": "yggdrasill.foundation:BlockRegistry",
    "Edge": "yggdrasill.foundation:Edge",
    "Graph": "yggdrasill.foundation:Graph",
    "Node": "yggdrasill.foundation:Node",
    "Pipeline": "yggdrasill.pipeline:Pipeline",
    "Port": "yggdrasill.foundation:Port",
    "RemoteGraph": "yggdrasill.remote:RemoteGraph",
    "Stage": "yggdrasill.stage:Stage",
    "State": "yggdrasill.stage:State",
    "World": "yggdrasill.world:World",
    "current_run": "yggdrasill.executor:current_run",
    "register_block": "yggdrasill.foundation:register_block",
    "run": "yggdrasill.executor:run",
    "run_graph": "yggdrasill.executor:run",
}

__all__ = [
    "AbstractBaseBlock",
    "BlockRegistry",
    "Edge",
    "Graph",
    "Node",
    "Pipeline",
    "Port",
    "RemoteGraph",
    "Stage",
    "State",
    "World",
    "__version__",
    "comfy_entrypoint",
    "current_run",
    "register_block",
    "run",
    "run_graph",
]


async def comfy_entrypoint() -> Any:
    """What ComfyUI's loader calls: the extension; raises `UnsupportedVersion` for a ComfyUI that is too old."""
    from yggdrasill.server_ext.comfy.entry import check_version

    check_version()
    from yggdrasill.nodes import YggdrasillExtension

    return YggdrasillExtension()


def __getattr__(name: str) -> Any:
    target = _PUBLIC.get(name)
    if target is None:
        raise AttributeError(f"module 'yggdrasill' has no attribute {name!r}")
    module, _, attribute = target.partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
