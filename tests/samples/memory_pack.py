# mypy: ignore-errors
"""A custom node pack for the test servers that reports the memory of the process: ``GET /test_memory``.

A request collects garbage first. ``?types=1`` adds the number of objects of each type, ``?module=NAME`` counts the types of one package only.
"""

import collections
import gc
import sys

import psutil
import server
import torch
from aiohttp import web

__all__ = ["NODE_CLASS_MAPPINGS"]

NODE_CLASS_MAPPINGS = {}


def _name(kind):
    return f"{kind.__module__}.{kind.__qualname__}"


def _weights(objects):
    """Return the number and the bytes of the parameters that are alive, each storage once."""
    storages, count = {}, 0
    for each in objects:
        if isinstance(each, torch.nn.Parameter):
            count += 1
            storages[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
    return count, sum(storages.values())


@server.PromptServer.instance.routes.get("/test_memory")
async def _memory(request):
    for _ in range(3):
        gc.collect()
    objects = gc.get_objects()
    parameters, nbytes = _weights(objects)
    found = {
        "rss": psutil.Process().memory_info().rss,
        "objects": len(objects),
        "blocks": sys.getallocatedblocks(),
        "threads": psutil.Process().num_threads(),
        "files": psutil.Process().num_fds() if hasattr(psutil.Process, "num_fds") else 0,
        "parameters": parameters,
        "parameter_bytes": nbytes,
    }
    if request.query.get("types"):
        found["types"] = dict(collections.Counter(_name(type(each)) for each in objects))
    return web.json_response(found)
