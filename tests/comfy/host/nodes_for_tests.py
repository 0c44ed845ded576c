# mypy: ignore-errors
# ruff: noqa: N802
"""A custom node pack for the test servers: nodes that are slow, fail, count, block, loop, or return values that are not transferable."""

import time
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_execution.graph_utils import ExecutionBlocker, GraphBuilder, is_link
from PIL import Image

__all__ = ["NODE_CLASS_MAPPINGS"]


class _Any(str):
    __slots__ = ()

    def __ne__(self, other):
        return False

    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


ANY = _Any("*")


class _Node:
    FUNCTION = "act"
    CATEGORY = "tests"
    RETURN_TYPES = (ANY,)


class Slow(_Node):
    """Returns its value after some seconds of interruptible work in steps of 10 ms; ``salt`` keeps it out of the cache."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "seconds": ("FLOAT", {"default": 1.0, "max": 600.0}), "salt": ("STRING", {"default": ""})}}

    def act(self, value, seconds, salt):
        steps = max(1, int(seconds / 0.01))
        bar = comfy.utils.ProgressBar(steps)
        for _ in range(steps):
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.01)
            bar.update(1)
        return (value,)


class Judge(_Node):
    """Validates the types of its links itself, as ComfyUI documents it."""

    RETURN_TYPES = ("INT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("INT", {"forceInput": True}), "add": ("INT", {"default": 1})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True if input_types["value"] in ("INT", "FLOAT") else f"value is a {input_types['value']}, not a number"

    def act(self, value, add):
        return (value + add,)


class Fail(_Node):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "message": ("STRING", {"default": "no"})}}

    def act(self, value, message):
        raise ValueError(message)


class FailLater(_Node):
    """Returns its value, and fails for the second number and later ones."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "number": ("INT", {"default": 0})}}

    def act(self, value, number):
        if number:
            raise ValueError(f"number {number} is too high")
        return (value,)


class OutOfMemory(_Node):
    """Raises the error of a device with too little memory."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,)}}

    def act(self, value):
        raise torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory")


class Salt(_Node):
    """Returns its value; ``salt`` keeps the nodes after it out of the cache."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "salt": ("STRING", {"default": ""})}}

    def act(self, value, salt):
        return (value,)


class Several(_Node):
    """Returns the numbers from 0 up as a list of values."""

    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"count": ("INT", {"default": 3})}}

    def act(self, count):
        return ([float(number) for number in range(count)],)


class Double(_Node):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,)}}

    def act(self, value):
        return (value * 2,)


class Add(_Node):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "number": ("INT", {"default": 1})}}

    def act(self, value, number):
        return (value + number,)


class Look(_Node):
    """Shows its value and returns it."""

    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,)}}

    def act(self, value):
        return {"ui": {"text": [repr(value)]}, "result": (value,)}


class Keep(_Node):
    """Returns its object."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "number": ("INT", {"default": 1})}}

    def act(self, model, number):
        return (model,)


class NameOf(_Node):
    """Returns the name of the class of an object."""

    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def act(self, model):
        return (type(model).__name__,)


class Block(_Node):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "message": ("STRING", {"default": ""})}}

    def act(self, value, message):
        return (ExecutionBlocker(message or None),)


class RepeatStart(_Node):
    """Returns its value and the number of the round. A loop from here to `RepeatEnd` runs the nodes between them several times."""

    RETURN_TYPES = (ANY, "INT")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,)}, "optional": {"number": ("INT", {"default": 0})}}

    def act(self, value, number=0):
        return (value, number)


def _loop_before(end, dynprompt):
    """Return the nodes of a loop, and those that start it."""
    users = {}
    waiting, seen, starts = [end], {end}, []
    while waiting:
        name = waiting.pop()
        node = dynprompt.get_node(name)
        if node["class_type"] == "TestRepeatStart":
            starts.append(name)
            continue
        for source in [link[0] for link in node["inputs"].values() if is_link(link)]:
            users.setdefault(source, []).append(name)
            waiting += {source} - seen
            seen.add(source)
    inside, waiting = set(), list(starts)
    while waiting:
        name = waiting.pop()
        if name not in inside:
            inside.add(name)
            waiting += users.get(name, [])
    return inside, starts


class RepeatEnd(_Node):
    """Ends a loop: each further round is a copy of the nodes since the start, made when the round before has ended.

    Copies are shown as their originals, or, without ``shown``, as this node, under ids that say nothing about the originals.
    """

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"value": (ANY,), "rounds": ("INT", {"default": 3}), "shown": ("BOOLEAN", {"default": True})},
            "optional": {"number": ("INT", {"default": 0})},
            "hidden": {"dynprompt": "DYNPROMPT", "unique_id": "UNIQUE_ID"},
        }

    def act(self, value, rounds, shown, number=0, dynprompt=None, unique_id=None):
        if number + 1 >= rounds:
            return (value,)
        inside, starts = _loop_before(unique_id, dynprompt)
        graph = GraphBuilder()
        copies = {}
        for name in sorted(inside):
            copies[name] = graph.node(dynprompt.get_node(name)["class_type"], ("again" if name == unique_id else name) if shown else None)
            if shown:
                copies[name].set_override_display_id(name)
        for name, copy in copies.items():
            for key, given in dynprompt.get_node(name)["inputs"].items():
                copied = is_link(given) and given[0] in copies
                copy.set_input(key, copies[given[0]].out(given[1]) if copied else given)
        for name in starts:
            copies[name].set_input("value", value)
            copies[name].set_input("number", number + 1)
        copies[unique_id].set_input("number", number + 1)
        return {"result": (copies[unique_id].out(0),), "expand": graph.finalize()}


class Repeated(_Node):
    """Returns its value and shows a text again when its output is in the cache."""

    HAS_INTERMEDIATE_OUTPUT = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "text": ("STRING", {"default": ""})}}

    def act(self, value, text):
        return {"ui": {"text": [text]}, "result": (value,)}


class Object(_Node):
    """Returns an object without a wire form."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def act(self):
        return (object(),)


class Count(_Node):
    """Returns its value, and how often this node class ran in this process."""

    RETURN_TYPES = (ANY, "INT")
    times = 0

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,)}}

    def act(self, value):
        Count.times += 1
        return (value, Count.times)


class Tell(_Node):
    """Returns its value and shows a text, although it is not an output node."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "text": ("STRING", {"default": ""})}}

    def act(self, value, text):
        return {"ui": {"text": [text]}, "result": (value,)}


class Sketch(_Node):
    """Returns its value and shows a picture in the temporary folder, although it is not an output node."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "grey": ("INT", {"default": 0})}}

    def act(self, value, grey):
        name = f"sketch-{grey}.png"
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(exist_ok=True)
        Image.new("L", (4, 4), grey).save(folder / name)
        return {"ui": {"images": [{"filename": name, "subfolder": "", "type": "temp"}]}, "result": (value,)}


class Fickle(_Node):
    """Returns its value; its fingerprint may change for equal inputs."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,)}}

    @classmethod
    def IS_CHANGED(cls, value):
        return float("nan")

    def act(self, value):
        return (value,)


class Hidden(_Node):
    """Returns its hidden inputs as text."""

    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,)}, "hidden": {"key": "API_KEY_COMFY_ORG", "prompt": "PROMPT", "png": "EXTRA_PNGINFO"}}

    def act(self, value, key=None, prompt=None, png=None):
        return (repr([key, prompt, png]),)


class Show(_Node):
    """Adds the text of its value to the prompt's outputs."""

    OUTPUT_NODE = True
    RETURN_TYPES = ()
    INPUT_IS_LIST = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,)}}

    def act(self, value):
        return {"ui": {"text": [repr(item) for item in value]}, "result": ()}


class Preview(_Node):
    """Sends previews of a latent as a sampler does, one per step, if previews are enabled."""

    RETURN_TYPES = (ANY,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "steps": ("INT", {"default": 10}), "salt": ("STRING", {"default": ""})}}

    def act(self, value, steps, salt):
        import comfy.latent_formats
        import comfy.utils
        import latent_preview
        import torch

        previewer = latent_preview.get_previewer("cpu", comfy.latent_formats.SD15())
        bar = comfy.utils.ProgressBar(steps)
        for step in range(steps):
            latent = torch.full((1, 4, 8, 8), step / steps)
            bar.update_absolute(step + 1, steps, previewer and previewer.decode_latent_to_preview_image("JPEG", latent))
        return (value,)


NODE_CLASS_MAPPINGS = {
    f"Test{cls.__name__}": cls
    for cls in (
        Slow,
        Judge,
        Fail,
        FailLater,
        OutOfMemory,
        Salt,
        Several,
        Double,
        Block,
        Object,
        Count,
        Tell,
        Repeated,
        Sketch,
        Fickle,
        Hidden,
        Show,
        Preview,
        RepeatStart,
        RepeatEnd,
        Add,
        Look,
        Keep,
        NameOf,
    )
}
