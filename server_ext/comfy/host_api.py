"""Every entry into ComfyUI: its queue, its messages, its interrupt flag, its version. Nothing else here knows how ComfyUI is made.

ComfyUI trusts its callers: a queue item of another length ends the thread that runs prompts, and one message that is no
JSON ends the process. What is handed to it is checked here first. Functions may be called from any thread unless they say
otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidArgument

__all__ = [
    "MINIMUM_VERSION",
    "Place",
    "Validation",
    "call_node",
    "close_socket",
    "comfy_version",
    "delete_queued",
    "enqueue",
    "executing_place",
    "flags_problem",
    "forget",
    "interrupt_running",
    "interrupted",
    "media_folders",
    "model_folders",
    "named_model_folders",
    "node_classes",
    "on_main_loop",
    "open_socket",
    "preview_method",
    "prompt_server",
    "prompt_state",
    "queue_depth",
    "raise_interrupt",
    "send_json",
    "send_preview",
    "send_text",
    "shielded",
    "user_directory",
    "validate",
    "version_problem",
    "waiting_prompts",
]

MINIMUM_VERSION = (0, 25)
_LOG = logging.getLogger("yggdrasill.comfy")
_PREVIEW_WITH_METADATA = 4
_LONGEST_MESSAGE = 8 << 20
_LONGEST_LINE = 500


@dataclass(frozen=True)
class Validation:
    """What ComfyUI thinks of a prompt: the output nodes it would run, or what is wrong with which node."""

    ok: bool
    outputs: list[str]
    error: dict[str, Any] | None
    node_errors: dict[str, Any]


@dataclass(frozen=True)
class Place:
    """The prompt and node that this code is called for."""

    prompt_id: str
    node_id: str


# -- version ------------------------------------------------------------------------------------------------------


def comfy_version() -> str | None:
    """The version text of the ComfyUI around this process, or None where it does not say."""
    try:
        version = importlib.import_module("comfyui_version").__version__
    except (ImportError, AttributeError):
        return None
    return str(version)


def version_problem(version: str | None) -> str | None:
    """Why the extension cannot work in this version of ComfyUI, in words for its owner; None if it can."""
    wanted = ".".join(map(str, MINIMUM_VERSION))
    if version is None:
        return f"this ComfyUI does not say its version, so it is older than {wanted}, the oldest that Yggdrasill works with; update ComfyUI"
    numbers = []
    for part in version.strip().removeprefix("v").split(".")[:2]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits) if digits else 0)
    if tuple(numbers) >= MINIMUM_VERSION:
        return None
    return (
        f"this is ComfyUI {version}, and Yggdrasill works with {wanted} and later; update ComfyUI, or remove Yggdrasill from custom_nodes"
    )


# -- the server ---------------------------------------------------------------------------------------------------


def prompt_server() -> Any:
    """The PromptServer of this process.

    Raises:
        InvalidArgument: ComfyUI is not running here.
    """
    instance = getattr(importlib.import_module("server").PromptServer, "instance", None)
    if instance is None:
        raise InvalidArgument("there is no ComfyUI server in this process; this runs inside ComfyUI only")
    return instance


def on_main_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on ComfyUI's main loop from another thread and wait for its result."""
    return asyncio.run_coroutine_threadsafe(coroutine, prompt_server().loop).result()


def user_directory() -> str:
    """The folder ComfyUI keeps its user's files in."""
    return str(importlib.import_module("folder_paths").get_user_directory())


def node_classes() -> Mapping[str, Any]:
    """The node classes by the name that prompts use."""
    found: Mapping[str, Any] = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
    return found


def call_node(class_type: str, given: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The outputs of a node of the newer form that works at once, called apart from any prompt.

    ``given`` are its inputs as a prompt has them, ``values`` the same with the values of links.
    """
    forms = importlib.import_module("comfy_api.latest._io")
    cls = node_classes()[class_type]
    known, _, dynamic = forms.get_finalized_class_inputs(cls.INPUT_TYPES(), dict(given))
    names = {*known.get("required", ()), *known.get("optional", ())}
    nested = forms.build_nested_inputs({name: value for name, value in values.items() if name in names}, dynamic)
    outputs: tuple[Any, ...] = cls.execute(**nested).args
    return outputs


def flags_problem() -> str | None:
    """What the command line of this ComfyUI means for an endpoint that serves several graphs; None if nothing."""
    args = importlib.import_module("comfy.cli_args").args
    if args.cache_lru > 0 or len(args.cache_ram) > 1:
        return None
    return (
        "ComfyUI started like this forgets the models of one graph when another one runs; an endpoint that serves several graphs keeps them "
        "with '--cache-lru 50', or with '--cache-ram 4 4' (GiB of memory to keep free)"
    )


def media_folders() -> list[Path]:
    """ComfyUI's input and output folders, which anybody who may post a prompt reads and writes through its own nodes."""
    paths = importlib.import_module("folder_paths")
    return [Path(paths.get_input_directory()), Path(paths.get_output_directory())]


def model_folders() -> list[Path]:
    """The folders that ComfyUI finds models in."""
    named = importlib.import_module("folder_paths").folder_names_and_paths
    return sorted({Path(folder) for key, entry in named.items() if key != "custom_nodes" for folder in entry[0]})


def named_model_folders() -> dict[str, Path]:
    """The folder that a new file of each kind of model goes into."""
    named = importlib.import_module("folder_paths").folder_names_and_paths
    return {str(key): Path(entry[0][0]) for key, entry in named.items() if key not in ("configs", "custom_nodes") and entry[0]}


# -- the queue ----------------------------------------------------------------------------------------------------


async def validate(prompt_id: str, prompt: dict[str, Any]) -> Validation:
    """Let ComfyUI check ``prompt``, in which it writes constants as the node classes want them. On the main loop only."""
    ok, error, outputs, node_errors = await importlib.import_module("execution").validate_prompt(prompt_id, prompt, None)
    return Validation(bool(ok), [str(node) for node in outputs], error, dict(node_errors))


def enqueue(number: float, prompt_id: str, prompt: Mapping[str, Any], extra_data: Mapping[str, Any], outputs: Sequence[str]) -> None:
    """Put a validated prompt into ComfyUI's queue; smaller numbers go first.

    Raises:
        InvalidArgument: something in it is not what the queue takes; nothing was queued.
    """
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number != number:  # noqa: PLR0124 - not a number
        raise InvalidArgument(f"a place in the queue is a number, got {number!r}")
    if not prompt_id or not isinstance(prompt_id, str) or not outputs:
        raise InvalidArgument("a prompt in the queue needs an id and at least one output node")
    copy = _plain(dict(prompt), "the prompt")
    extra = {**_plain(dict(extra_data), "extra_data"), "create_time": int(time.time() * 1000)}
    prompt_server().prompt_queue.put((number, prompt_id, copy, extra, [str(node) for node in outputs], {}))


def delete_queued(prompt_id: str) -> bool:
    """Take a waiting prompt out of the queue; False if none of that id waits."""
    return bool(prompt_server().prompt_queue.delete_queue_item(lambda item: item[1] == prompt_id))


def interrupt_running(prompt_id: str) -> bool:
    """Interrupt the prompt of that id if it runs right now, and no other; False if it does not run."""
    return bool(prompt_server().prompt_queue.interrupt_if_running(prompt_id))


def prompt_state(prompt_id: str) -> str | None:
    """``running``, ``queued`` or ``finished``; None for a prompt that ComfyUI does not have (any more)."""
    prompt_queue = prompt_server().prompt_queue
    with prompt_queue.mutex:
        if any(item[1] == prompt_id for item in prompt_queue.currently_running.values()):
            return "running"
        if any(item[1] == prompt_id for item in prompt_queue.queue):
            return "queued"
        return "finished" if prompt_id in prompt_queue.history else None


def queue_depth() -> tuple[int, int]:
    """How many prompts wait and run, the owner's included."""
    prompt_queue = prompt_server().prompt_queue
    with prompt_queue.mutex:
        return len(prompt_queue.queue), len(prompt_queue.currently_running)


def waiting_prompts() -> list[tuple[float, str]]:
    """The places and ids of the prompts that wait, the owner's included, in no order."""
    prompt_queue = prompt_server().prompt_queue
    with prompt_queue.mutex:
        return [(float(item[0]), str(item[1])) for item in prompt_queue.queue]


def forget(prompt_id: str) -> None:
    """Remove a finished prompt from ComfyUI's history."""
    prompt_server().prompt_queue.delete_history_item(prompt_id)


# -- interrupts ---------------------------------------------------------------------------------------------------


def interrupted() -> bool:
    """Whether somebody asked the prompt that runs to stop, and nothing has taken notice yet."""
    return bool(importlib.import_module("comfy.model_management").processing_interrupted())


def raise_interrupt() -> None:
    """Take notice of an interrupt by raising ComfyUI's own exception; nothing happens without one."""
    importlib.import_module("comfy.model_management").throw_exception_if_processing_interrupted()


def executing_place() -> Place | None:
    """The prompt and node whose code is running, in a node's own thread or task."""
    context = importlib.import_module("comfy_execution.utils").get_executing_context()
    return None if context is None else Place(str(context.prompt_id), str(context.node_id))


def preview_method() -> str:
    """How the prompt that runs wants previews of latents made: ``none``, ``auto``, ``latent2rgb`` or ``taesd``. In a node's own task."""
    return str(importlib.import_module("comfy.cli_args").args.preview_method.value)


# -- messages -----------------------------------------------------------------------------------------------------


def send_json(event: str, data: Mapping[str, Any], sid: str | None) -> None:
    """Send a message to the browser ``sid``, or to all.

    Raises:
        InvalidArgument: it is no JSON, which would end ComfyUI's process.
    """
    if not isinstance(event, str) or not event:
        raise InvalidArgument(f"a message is named by a text, got {event!r}; pictures go through send_preview")
    prompt_server().send_sync(event, _plain(dict(data), f"message {event!r}"), sid)


def send_preview(metadata: Mapping[str, Any], image: bytes, sid: str | None) -> None:
    """Send an encoded picture (jpeg or png) that belongs to the node in ``metadata`` to the browser ``sid``.

    Raises:
        InvalidArgument: metadata that is no JSON, or a picture that is no bytes.
    """
    if not isinstance(image, (bytes, bytearray, memoryview)):
        raise InvalidArgument(f"a preview is bytes, got {type(image).__name__}")
    text = json.dumps(_plain(dict(metadata), "a preview's metadata")).encode("utf-8")
    server = prompt_server()
    payload = len(text).to_bytes(4, "big") + text + bytes(image)
    asyncio.run_coroutine_threadsafe(_quietly(server, payload, sid), server.loop)


def send_text(text: str, node_id: str, sid: str | None) -> None:
    """Show a line of text on a node while it runs."""
    prompt_server().send_progress_text(text[:_LONGEST_LINE], node_id, sid)


async def _quietly(server: Any, payload: bytes, sid: str | None) -> None:
    with shielded("a preview could not be sent"):
        await server.send_bytes(_PREVIEW_WITH_METADATA, payload, sid)


def open_socket(sid: str, socket: Any) -> None:
    """Let ``socket`` (coroutines ``send_json`` and ``send_bytes``, which must never raise) get the messages sent to ``sid``. On the main loop."""
    server = prompt_server()
    server.sockets[sid] = socket
    server.sockets_metadata[sid] = {"feature_flags": {"supports_preview_metadata": True}}


def close_socket(sid: str) -> None:
    """Undo `open_socket`. On the main loop."""
    server = prompt_server()
    server.sockets.pop(sid, None)
    server.sockets_metadata.pop(sid, None)


def _plain(value: Any, what: str) -> Any:
    """A deep copy of JSON values, or `InvalidArgument`."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is no JSON: {error}") from None
    if len(text) > _LONGEST_MESSAGE:
        raise InvalidArgument(f"{what} has {len(text)} bytes of JSON; ComfyUI is given at most {_LONGEST_MESSAGE}")
    return json.loads(text)


@contextlib.contextmanager
def shielded(what: str) -> Iterator[None]:
    """Turn an exception of ours into one line in ComfyUI's log, so that it never reaches ComfyUI's own code."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - this is what it is for
        _LOG.error("Yggdrasill: %s: %s: %s", what, type(error).__name__, error)
