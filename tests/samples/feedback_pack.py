# mypy: ignore-errors
# ruff: noqa: N802
"""A custom node pack for the test servers, whose node sends a message to every page, as packs do that set the widgets of a node."""

from comfy_execution.utils import get_executing_context
from server import PromptServer

__all__ = ["NODE_CLASS_MAPPINGS"]


class Feedback:
    """Returns a picture, and sends ``test-feedback`` with the id of its node to all pages."""

    FUNCTION, CATEGORY, RETURN_TYPES = "act", "tests", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "value": ("STRING", {"default": ""})}, "hidden": {"node_id": "UNIQUE_ID"}}

    def act(self, image, value, node_id):
        prompt_id = get_executing_context().prompt_id
        PromptServer.instance.send_sync("test-feedback", {"prompt_id": prompt_id, "node_id": node_id, "value": value})
        return (image,)


NODE_CLASS_MAPPINGS = {"TestFeedback": Feedback}
