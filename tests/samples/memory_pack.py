# mypy: ignore-errors
"""A custom node pack for the test servers that reports the memory of the process: ``GET /test_memory``.

A request collects garbage first, and returns memory that is freed but cached by the C library's allocator, which differs from run to run with the
threads that allocated it: what remains is in use. ``?types=1`` adds the number of objects of each type, ``?module=NAME`` counts the types of one package only.
"""

import collections
import ctypes
import gc
import sys

import psutil
import server
import torch
from aiohttp import web

__all__ = ["NODE_CLASS_MAPPINGS"]


class Weights:
    """Loads weights of 64 MiB."""

    FUNCTION, CATEGORY, RETURN_TYPES = "act", "tests", ("TEST_WEIGHTS",)
    INPUT_TYPES = classmethod(lambda cls: {"required": {"seed": ("INT", {"default": 0})}})

    def act(self, seed):
        return (torch.nn.Linear(4096, 4096, bias=False),)


class UseWeights:
    """Multiplies a picture by the mean of the weights."""

    FUNCTION, CATEGORY, RETURN_TYPES = "act", "tests", ("IMAGE",)
    INPUT_TYPES = classmethod(lambda cls: {"required": {"weights": ("TEST_WEIGHTS",), "image": ("IMAGE",)}})

    def act(self, weights, image):
        return (image * weights.weight.mean().item(),)


NODE_CLASS_MAPPINGS = {"TestWeights": Weights, "TestUseWeights": UseWeights}


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
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)(0)
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


def _register_block():
    """Register the block type ``test/heavy``, which multiplies a picture by weights of 64 MiB."""
    from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Port, PortDirection

    class Heavy(AbstractBaseBlock):
        block_type = "test/heavy"

        def __init__(self, block_id=None, *, config=None):
            super().__init__(block_id, config=config)
            self.model = torch.nn.Linear(4096, 4096, bias=False)

        def declare_ports(self):
            return [Port("x", PortDirection.IN), Port("y", PortDirection.OUT)]

        def forward(self, inputs):
            return {"y": inputs["x"] * self.model.weight.mean().item()}

    BlockRegistry.global_registry().register(Heavy.block_type, Heavy)


@server.PromptServer.instance.routes.post("/test_memory/block")
async def _block(request):
    _register_block()
    return web.json_response({})
