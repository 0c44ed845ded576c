"""The forms of node classes, as the partition wants them: from the classes of this ComfyUI, and from endpoints for those it lacks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from yggdrasill.remote.partition.schemas import NodeSchema, NodeSchemas
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.object_info import read_object_info

__all__ = ["SchemaCache", "read_schemas"]


class SchemaCache:
    """Forms of this process's classes, each read once; the choices in them, often this machine's files, do not matter to the partition."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, NodeSchema]] = {}

    def missing(self, names: Iterable[str]) -> set[str]:
        """Those classes that this ComfyUI does not have."""
        return set(names) - set(host_api.node_classes())

    async def schemas(self, names: Collection[str]) -> NodeSchemas:
        """The schemas of those of ``names`` that this ComfyUI has; on its main loop.

        Raises:
            InvalidConfig: a class whose form is none.
        """
        classes = host_api.node_classes()
        there = {name: classes[name] for name in names if name in classes}
        fresh = [name for name, node_class in there.items() if name not in self._known or self._known[name][0] is not node_class]
        if fresh:
            for name, schema in read_schemas(await read_object_info(fresh)).items():
                self._known[name] = there[name], schema
        return NodeSchemas({name: self._known[name][1] for name in there if name in self._known})


def read_schemas(forms: dict[str, Any]) -> NodeSchemas:
    """From what `read_object_info`, or an endpoint's ``GET /nodes``, gives."""
    return NodeSchemas.from_object_info(forms["nodes"], asks_again=forms["asks_again"])
