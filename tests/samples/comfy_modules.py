"""ComfyUI's modules as far as the extension uses them, with the same names and signatures, for tests without a ComfyUI."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

__all__ = ["Executor", "FakeServer", "install_comfy", "remove_hold"]


class Node:
    """A node class of the first kind."""

    RETURN_TYPES = ("INT",)

    INPUT_TYPES: Any = classmethod(lambda cls: {"required": {}})


class Blocker:
    def __init__(self, message: str | None) -> None:
        self.message = message


class Registry:
    """As ComfyUI's, a handler iterates over the nodes on each change."""

    def __init__(self, prompt_id: str, dynprompt: Any) -> None:
        self.prompt_id, self.dynprompt = prompt_id, dynprompt
        self.nodes: dict[str, dict[str, Any]] = {}

    def ensure_entry(self, node_id: str) -> dict[str, Any]:
        return self.nodes.setdefault(node_id, {"state": "pending", "value": 0, "max": 1})

    def start_progress(self, node_id: str) -> None:
        self.ensure_entry(node_id)["state"] = "running"
        _ = [dict(state) for state in self.nodes.values()]

    def update_progress(self, node_id: str, value: float, max_value: float, image: Any = None) -> None:
        self.ensure_entry(node_id).update(state="running", value=value, max=max_value)

    def finish_progress(self, node_id: str) -> None:
        self.ensure_entry(node_id)["state"] = "finished"
        _ = [dict(state) for state in self.nodes.values()]


class DynPrompt:
    def __init__(self, original: dict[str, Any]) -> None:
        self.original_prompt = original

    def has_node(self, node_id: str) -> bool:
        return node_id in self.original_prompt

    def get_node(self, node_id: str) -> Any:
        return self.original_prompt[node_id]

    def get_display_node_id(self, node_id: str) -> str:
        return node_id

    def get_parent_node_id(self, node_id: str) -> None:
        return None

    def get_real_node_id(self, node_id: str) -> str:
        return node_id

    def get_original_prompt(self) -> dict[str, Any]:
        return self.original_prompt


class Queue:
    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.queue: list[Any] = []
        self.currently_running: dict[int, Any] = {}
        self.history: dict[str, Any] = {}

    def put(self, item: Any) -> None:
        self.queue.append(item)

    def delete_queue_item(self, function: Any) -> bool:
        return False

    def interrupt_if_running(self, prompt_id: str) -> bool:
        return False

    def delete_history_item(self, id_to_delete: str) -> None:
        self.history.pop(id_to_delete, None)


class FakeServer:
    """`server.PromptServer`. ``sent`` has the messages in order, ``queued`` the prompts that a test posted."""

    instance: Any = None

    def __init__(self) -> None:
        self.app = web.Application()
        self.loop: Any = None
        self.sockets: dict[str, Any] = {}
        self.sockets_metadata: dict[str, Any] = {}
        self.prompt_queue = Queue()
        self.client_id: str | None = None
        self.last_node_id: str | None = None
        self.last_prompt_id: str | None = None
        self.number = 0
        self.users = {"default": "default"}
        self.user_manager = SimpleNamespace(get_request_user_id=self._user)
        self.on_prompt_handlers: list[Any] = []
        self.sent: list[tuple[Any, Any, Any]] = []
        self.queued: list[Any] = []
        self.routes = web.RouteTableDef()

        @self.routes.get("/object_info/{node_class}")
        async def one(request: web.Request) -> web.Response:
            return web.json_response({})

    def _user(self, request: Any) -> str:
        """The user of a request as ComfyUI's ``UserManager`` determines it."""
        user = str(request.headers.get("comfy-user", "default")) if sys.modules["comfy.cli_args"].args.multi_user else "default"
        if user not in self.users:
            raise KeyError("Unknown user: " + user)
        return user

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        # ComfyUI encodes the pictures of these events itself, from an image and its metadata
        if event in (2, 4):
            raise TypeError(f"a picture of event {event} is encoded twice")
        self.sent.append((int(event) if isinstance(event, int) else event, data, sid))

    async def send_bytes(self, event: Any, data: Any, sid: str | None = None) -> None:
        self.sent.append((event, data, sid))

    def send_progress_text(self, text: Any, node_id: str, sid: str | None = None) -> None:
        self.sent.append((3, (text, node_id), sid))

    def add_on_prompt_handler(self, handler: Any) -> None:
        self.on_prompt_handlers.append(handler)

    def trigger_on_prompt(self, json_data: Any) -> Any:
        for handler in self.on_prompt_handlers:
            with contextlib.suppress(Exception):  # ComfyUI ignores a handler that raises
                json_data = handler(json_data)
        return json_data


class Executor:
    """`execution.PromptExecutor`: sends the messages of a run; ``during`` is called in the middle of it."""

    during: Any = None

    def __init__(self, server: Any, cache_type: Any = False, cache_args: Any = None) -> None:
        self.server, self.cache_type, self.cache_args = server, cache_type, cache_args
        self.caches: Any = SimpleNamespace()
        self.status_messages: list[Any] = []
        self.success = True
        self.history_result: dict[str, Any] = {}

    def reset(self) -> None:
        self.caches = SimpleNamespace()

    def add_message(self, event: str, data: dict[str, Any], broadcast: bool) -> None:
        self.status_messages.append((event, data))
        if self.server.client_id is not None or broadcast:
            self.server.send_sync(event, data, self.server.client_id)

    def execute(self, prompt: Any, prompt_id: str, extra_data: Any = None, execute_outputs: Any = None) -> None:
        asyncio.run(self.execute_async(prompt, prompt_id, extra_data or {}, execute_outputs or []))

    async def execute_async(self, prompt: Any, prompt_id: str, extra_data: Any = None, execute_outputs: Any = None) -> None:
        sys.modules["comfy.model_management"].interrupt_current_processing(False)
        self.server.client_id = (extra_data or {}).get("client_id")
        self.status_messages, self.success = [], True
        self.add_message("execution_start", {"prompt_id": prompt_id}, False)
        progress: Any = sys.modules["comfy_execution.progress"]
        progress.global_progress_registry = Registry(prompt_id, DynPrompt(prompt))
        self.add_message("execution_cached", {"nodes": [], "prompt_id": prompt_id}, False)
        self.ran = prompt
        if self.during is not None:
            found = self.during(self)
            if inspect.isawaitable(found):
                await found
        self.server.send_sync("executing", {"node": next(iter(prompt)), "prompt_id": prompt_id}, self.server.client_id)
        self.history_result = {"outputs": {}, "meta": {}}
        self.add_message("execution_success", {"prompt_id": prompt_id}, False)


def _module(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> Any:
    module = ModuleType(name)
    for key, value in attributes.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    return module


async def validate_prompt(prompt_id: Any, prompt: Any, partial_execution_list: Any) -> Any:
    return True, None, list(prompt)[-1:], {}


def get_input_data(
    inputs: Any, class_def: Any, unique_id: Any, execution_list: Any = None, dynprompt: Any = None, extra_data: Any = None
) -> Any:
    return dict(inputs), {}, {}


def install_comfy(monkeypatch: pytest.MonkeyPatch, folder: Path) -> FakeServer:
    """Put the modules into ``sys.modules`` until the test ends, and return the server. ``folder`` holds ComfyUI's folders."""
    executor = type(
        "PromptExecutor", (), {name: value for name, value in vars(Executor).items() if name not in ("__dict__", "__weakref__")}
    )
    prompt_server: Any = type("PromptServer", (FakeServer,), {})
    server: FakeServer = prompt_server()
    prompt_server.instance = server
    _module(monkeypatch, "server", PromptServer=prompt_server)
    _module(
        monkeypatch,
        "execution",
        validate_prompt=validate_prompt,
        get_input_data=get_input_data,
        PromptExecutor=executor,
        PromptQueue=Queue,
        CacheType=SimpleNamespace(CLASSIC="classic", LRU="lru", NONE="none", RAM_PRESSURE="ram"),
    )
    _module(monkeypatch, "nodes", NODE_CLASS_MAPPINGS={"X": Node, "Y": Node})
    _module(monkeypatch, "comfyui_version", __version__="0.33.0")
    folders = {name: str(folder / name) for name in ("input", "output", "temp")}
    _module(
        monkeypatch,
        "folder_paths",
        folder_names_and_paths={"checkpoints": ([str(folder / "models")], {".safetensors"})},
        get_user_directory=lambda: str(folder / "user"),
        get_input_directory=lambda: folders["input"],
        get_output_directory=lambda: folders["output"],
        get_temp_directory=lambda: folders["temp"],
        get_directory_by_type=folders.get,
        get_filename_list=lambda folder_name: [],
        get_full_path=lambda folder_name, filename: None,
    )
    _comfy_modules(monkeypatch)
    _execution_modules(monkeypatch)
    return server


def _comfy_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    _module(monkeypatch, "comfy")
    args = SimpleNamespace(
        listen="127.0.0.1",
        port=8188,
        tls_keyfile=None,
        tls_certfile=None,
        multi_user=False,
        preview_method=SimpleNamespace(value="none"),
        cache_classic=False,
        cache_none=False,
        cache_lru=1,
        cache_ram=[],
    )
    _module(monkeypatch, "comfy.cli_args", args=args)
    management = _module(
        monkeypatch,
        "comfy.model_management",
        interrupt_processing_mutex=threading.RLock(),
        interrupt_processing=False,
        get_torch_device=lambda: "cpu",
        get_all_torch_devices=lambda: ["cpu"],
        get_free_memory=lambda dev=None: 1,
        get_total_memory=lambda dev=None: 2,
        minimum_inference_memory=lambda: 1,
        free_memory=lambda memory_required, device, keep_loaded=(): [],
        total_ram=1024.0,
    )

    def interrupt_current_processing(value: bool = True) -> None:
        management.interrupt_processing = value

    management.interrupt_current_processing = interrupt_current_processing
    management.processing_interrupted = lambda: management.interrupt_processing
    management.throw_exception_if_processing_interrupted = lambda: None
    memory = _module(monkeypatch, "comfy.memory_management", extra_ram_release_callback=None, RAM_CACHE_HEADROOM=0)

    def set_ram_cache_release_state(callback: Any, headroom: int) -> None:
        memory.extra_ram_release_callback, memory.RAM_CACHE_HEADROOM = callback, headroom

    memory.set_ram_cache_release_state = set_ram_cache_release_state


def _execution_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    _module(monkeypatch, "comfy_execution")
    progress = _module(monkeypatch, "comfy_execution.progress", global_progress_registry=None, ProgressRegistry=Registry)
    progress.get_progress_state = lambda: progress.global_progress_registry
    context: Any = contextvars.ContextVar("executing", default=None)
    _module(monkeypatch, "comfy_execution.utils", get_executing_context=context.get, context=context)
    _module(monkeypatch, "comfy_execution.graph_utils", ExecutionBlocker=Blocker)
    _module(monkeypatch, "comfy_execution.graph", DynamicPrompt=DynPrompt)
    _module(monkeypatch, "comfy_api")
    _module(monkeypatch, "comfy_api.internal", _ComfyNodeInternal=type("Internal", (), {}), first_real_override=lambda cls, name: None)
    _module(monkeypatch, "comfy_api.latest")
    _module(
        monkeypatch,
        "comfy_api.latest._io",
        get_finalized_class_inputs=lambda d, live_inputs, include_hidden=False: (d, {}, {}),
        build_nested_inputs=lambda values, v3_data: values,
    )


def remove_hold(monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    """Delete what is at ``module:attribute.attribute``, as a ComfyUI that renamed it."""
    module, _, path = location.partition(":")
    *owners, name = path.split(".")
    owner: Any = sys.modules[module]
    for each in owners:
        owner = getattr(owner, each)
    holder = next((cls for cls in [owner, *inspect.getmro(owner if isinstance(owner, type) else type(owner))] if name in vars(cls)), owner)
    monkeypatch.delattr(holder, name)
