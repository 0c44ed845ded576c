# mypy: ignore-errors
"""A custom node pack that passes arguments that would end ComfyUI to `compat`, and reports the results."""

import json

import torch
from aiohttp import web
from server import PromptServer

__all__ = ["NODE_CLASS_MAPPINGS"]

NODE_CLASS_MAPPINGS = {}
PROMPT = {"1": {"class_type": "EmptyImage", "inputs": {}}}


def _broken(kind, facts):
    raise RuntimeError("broken")


def _tries():
    # packs are loaded in no order, so this one waits for the first request
    from yggdrasill.server_ext.comfy import compat
    from yggdrasill.server_ext.comfy.virtual_socket import VirtualSocket

    def listen():
        compat.open_socket("abused", VirtualSocket("p", _broken, lambda prompt_id: "running"))
        compat.send_json("executing", {"prompt_id": "p", "node": "1"}, "abused")

    return {
        "bytes as a message": lambda: compat.send_json("x", {"data": b"raw"}, None),
        "a set in a message": lambda: compat.send_json("x", {"data": {1}}, None),
        "a tensor in a message": lambda: compat.send_json("x", {"data": torch.zeros(1)}, None),
        "a number as the message's name": lambda: compat.send_json(4, {}, None),
        "text as a preview": lambda: compat.send_preview({}, "text", None),
        "a prompt with a tensor": lambda: compat.enqueue(1, "p", {"1": torch.zeros(1)}, {}, ["1"]),
        "a prompt without outputs": lambda: compat.enqueue(1, "p", PROMPT, {}, []),
        "no number as the place in the queue": lambda: compat.enqueue(float("nan"), "p", PROMPT, {}, ["1"]),
        "a listener that raises": listen,
        "a good preview": lambda: compat.send_preview({"node_id": "1"}, b"\xff\xd8", "abused"),
    }


@PromptServer.instance.routes.get("/abuse")
async def abuse(request):
    found = {}
    for name, act in _tries().items():
        try:
            act()
            found[name] = None
        except Exception as error:  # noqa: BLE001 - it is what the test asks for
            found[name] = type(error).__name__
    return web.json_response(json.loads(json.dumps(found)))
