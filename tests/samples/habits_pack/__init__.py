# mypy: ignore-errors
# ruff: noqa: N802, PTH110, PTH112, PTH118, PTH123, PTH208, PYI024, RUF012
"""A node pack with the habits of published packs: files without upload flags, savers, hidden inputs, objects on sockets, shared state."""

import json
import os
import random
from collections import namedtuple
from collections.abc import Mapping

import folder_paths
import torch

__all__ = ["NODE_CLASS_MAPPINGS"]

Segment = namedtuple("Segment", ["mask", "label"])


class _Any(str):
    __slots__ = ()

    def __ne__(self, other):
        return False

    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


class _Flexible(dict):
    """Optional inputs of any name."""

    def __contains__(self, name):
        return True

    def __getitem__(self, name):
        return (_Any("*"), {})


ANY = _Any("*")


def _text(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


class _Node:
    FUNCTION = "act"
    CATEGORY = "habits"
    RETURN_TYPES = ("STRING",)
    inputs: dict = {}
    hidden: dict = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": dict(cls.inputs), "hidden": dict(cls.hidden)}


class LoadListed(_Node):
    """Loads a file of the input folder that a combo lists, without an upload flag."""

    @classmethod
    def INPUT_TYPES(cls):
        folder = folder_paths.get_input_directory()
        return {"required": {"video": (sorted(name for name in os.listdir(folder) if name.endswith(".txt")),)}}

    @classmethod
    def VALIDATE_INPUTS(cls, video):
        return True if folder_paths.exists_annotated_filepath(video) else f"Invalid video file: {video}"

    def act(self, video):
        return (_text(folder_paths.get_annotated_filepath(video)),)


class LoadFolder(_Node):
    """Loads all files of a folder below input, output or anywhere."""

    inputs = {"folder": ("STRING", {"default": "X://insert/path"})}

    def act(self, folder):
        for root in ("", folder_paths.get_input_directory(), folder_paths.get_output_directory()):
            path = os.path.join(root, folder)
            if os.path.isdir(path):
                return ("".join(_text(os.path.join(path, name)) for name in sorted(os.listdir(path))),)
        raise FileNotFoundError(f"Directory {folder} cannot be found")


class SavePicture(_Node):
    """Saves its text, although it is not an output node, and returns it."""

    inputs = {"text": ("STRING", {"forceInput": True}), "filename_prefix": ("STRING", {"default": "habit"})}
    hidden = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}

    def act(self, text, filename_prefix, prompt=None, extra_pnginfo=None):
        with open(os.path.join(folder_paths.get_output_directory(), f"{filename_prefix}.txt"), "w", encoding="utf-8") as file:
            file.write(json.dumps([text, prompt, extra_pnginfo]))
        return (text,)


class ReadWidget(_Node):
    """Returns a widget of another node by the workflow and the prompt, as text."""

    inputs = {"text": ("STRING", {"forceInput": True}), "node": ("STRING", {"default": "1"})}
    hidden = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "unique_id": "UNIQUE_ID"}

    def act(self, text, node, prompt=None, extra_pnginfo=None, unique_id=None):
        titles = [each.get("title") for each in extra_pnginfo["workflow"]["nodes"]]
        return (json.dumps([text, unique_id, sorted(prompt), prompt[node]["inputs"], titles], sort_keys=True),)


class MakeModel(_Node):
    RETURN_TYPES = ("MODEL",)

    def act(self):
        return (object(),)


class MakePipe(_Node):
    inputs = {"model": ("MODEL",), "text": ("STRING", {"default": ""})}
    RETURN_TYPES = ("HABIT_PIPE",)

    def act(self, model, text):
        return ((model, text),)


class ReadPipe(_Node):
    inputs = {"pipe": ("HABIT_PIPE",), "text": ("STRING", {"forceInput": True})}

    def act(self, pipe, text):
        return (f"{pipe[1]}:{type(pipe[0]).__name__}:{text}",)


class Find(_Node):
    inputs = {"text": ("STRING", {"forceInput": True})}
    RETURN_TYPES = ("HABIT_SEGS",)

    def act(self, text):
        return ([Segment(torch.full((2, 2), float(len(text))), text)],)


class Draw(_Node):
    inputs = {"segs": ("HABIT_SEGS",), "text": ("STRING", {"forceInput": True})}

    def act(self, segs, text):
        return (f"{[(float(each.mask.sum()), each.label) for each in segs]}:{text}",)


class Throw(_Node):
    """Returns another value of a type of the pack each time."""

    inputs = {"text": ("STRING", {"forceInput": True})}
    RETURN_TYPES = ("HABIT_DICE", "STRING")

    @classmethod
    def IS_CHANGED(cls, text):
        return float("nan")

    def act(self, text):
        number = random.random()
        return (Segment(number, text), repr(number))


class ReadDice(_Node):
    """Returns whether a value is the one that a text was made with."""

    inputs = {"dice": ("HABIT_DICE",), "number": ("STRING", {"forceInput": True})}

    def act(self, dice, number):
        return (repr(repr(dice.mask) == number),)


class Plain(_Node):
    """Returns plain values under a type that the pack's table calls transferable."""

    inputs = {"text": ("STRING", {"forceInput": True})}
    RETURN_TYPES = ("HABIT_PLAIN",)

    def act(self, text):
        return ({"text": text, "numbers": [1, 2.5]},)


class ReadPlain(_Node):
    inputs = {"plain": ("HABIT_PLAIN",)}

    def act(self, plain):
        return (json.dumps(plain, sort_keys=True),)


class LazyAudio(Mapping):
    """An AUDIO that is decoded when it is first read."""

    def __init__(self, length):
        self._length = length

    def __getitem__(self, key):
        return {"waveform": torch.arange(self._length, dtype=torch.float32).reshape(1, 1, -1), "sample_rate": 8000}[key]

    def __iter__(self):
        return iter(("waveform", "sample_rate"))

    def __len__(self):
        return 2


class LoadSound(_Node):
    inputs = {"length": ("INT", {"default": 4})}
    RETURN_TYPES = ("AUDIO",)

    def act(self, length):
        return (LazyAudio(length),)


class Hear(_Node):
    inputs = {"audio": ("AUDIO",)}

    def act(self, audio):
        return (f"{audio['waveform'].tolist()} {audio['sample_rate']}",)


class Remember(_Node):
    inputs = {"text": ("STRING", {"forceInput": True}), "key": ("STRING", {"default": "a"})}
    memory: dict = {}

    def act(self, text, key):
        Remember.memory[key] = text
        return (text,)


class Recall(_Node):
    inputs = {"text": ("STRING", {"forceInput": True}), "key": ("STRING", {"default": "a"})}

    def act(self, text, key):
        return (f"{Remember.memory.get(key)}:{text}",)


class Count(_Node):
    inputs = {"text": ("STRING", {"forceInput": True})}
    times: dict = {}

    def act(self, text):
        Count.times[text] = Count.times.get(text, 0) + 1
        return (f"{text}:{Count.times[text]}",)


class Order(_Node):
    """Returns the names and values of its inputs in the order in which it receives them."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}, "optional": _Flexible()}

    def act(self, **values):
        return (json.dumps(list(values.items())),)


class Add(_Node):
    inputs = {"text": ("STRING", {"default": ""}), "more": ("STRING", {"default": ""})}

    def act(self, text, more):
        return (text + more,)


class Pick(_Node):
    """Returns a choice of names that the pack keeps in a folder of its own."""

    @classmethod
    def INPUT_TYPES(cls):
        folder = os.path.join(folder_paths.models_dir, "habit_styles")
        return {"required": {"style": (sorted(os.listdir(folder)) if os.path.isdir(folder) else ["none"],)}}

    def act(self, style):
        return (style,)


class ReadPath(_Node):
    """Reads a file by a path that it validates itself."""

    inputs = {"where": ("STRING", {"default": ""})}

    @classmethod
    def VALIDATE_INPUTS(cls, where):
        return True if os.path.exists(where) else f"{where} is not a file"

    def act(self, where):
        return (_text(where),)


class ChooseModel(_Node):
    """Returns a choice whose options are the files of this machine."""

    @classmethod
    def INPUT_TYPES(cls):
        cls.RETURN_TYPES = (folder_paths.get_filename_list("checkpoints") or ["none"],)
        return {"required": {"number": ("INT", {"default": 0})}}

    def act(self, number):
        return (str(number),)


class Apply(_Node):
    """Names a model file outside of loaders, in a text and in a widget with fields; returns what it finds."""

    inputs = {"text": ("STRING", {"default": "", "multiline": True}), "stack": ("HABIT_WIDGET", {})}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": cls.inputs["text"]}, "optional": _Flexible()}

    def act(self, text, **widgets):
        found = []
        for widget in widgets.values():
            path = folder_paths.get_full_path("loras", widget["lora"]) if isinstance(widget, dict) else None
            found.append(_text(path) if path else None)
        return (json.dumps([text, found]),)


class ReadLora(_Node):
    """Returns the content of a file from the list of LoRAs."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"lora": (folder_paths.get_filename_list("loras"),)}}

    def act(self, lora):
        return (_text(folder_paths.get_full_path("loras", lora)),)


NODE_CLASS_MAPPINGS = {
    f"Habit{cls.__name__}": cls
    for cls in (
        LoadListed, LoadFolder, SavePicture, ReadWidget, MakeModel, MakePipe, ReadPipe, Find, Draw, Throw, ReadDice, Plain, ReadPlain,
        LoadSound, Hear, Remember, Recall, Count, Order, Add, Pick, ReadPath, ChooseModel, Apply, ReadLora,
    )
}  # fmt: skip
