"""Schemas of node classes for the partition, from the classes of this ComfyUI or from endpoints."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from yggdrasill.remote.partition.schemas import NodeSchema, NodeSchemas
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.object_info import read_object_info

__all__ = ["SchemaCache", "read_schemas"]


class SchemaCache:
    """Schemas of this process's classes, each read once. Their choices, often this machine's files, do not matter to the partition."""

    def __init__(self) -> None:
        self._schemas: dict[str, tuple[Any, NodeSchema]] = {}

    def missing(self, names: Iterable[str]) -> set[str]:
        """Return the classes that this ComfyUI does not have."""
        return set(names) - set(compat.node_classes())

    async def schemas(self, names: Collection[str]) -> NodeSchemas:
        """Return the schemas of those of ``names`` that this ComfyUI has. Call it on ComfyUI's main loop.

        Raises:
            InvalidConfig: the definition of a class is not valid.
        """
        classes = compat.node_classes()
        available = {name: classes[name] for name in names if name in classes}
        new = [name for name, node_class in available.items() if name not in self._schemas or self._schemas[name][0] is not node_class]
        if new:
            for name, schema in read_schemas(await read_object_info(new)).items():
                self._schemas[name] = available[name], schema
        return NodeSchemas({name: self._schemas[name][1] for name in available if name in self._schemas})


def read_schemas(object_info: dict[str, Any]) -> NodeSchemas:
    """Parse schemas from the result of `read_object_info`, or from an endpoint's ``GET /nodes``."""
    return NodeSchemas.from_object_info(object_info["nodes"], asks_again=object_info["asks_again"], loops=object_info.get("loops"))
