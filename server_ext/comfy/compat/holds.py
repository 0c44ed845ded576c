"""Everything that the extension uses of ComfyUI, each with its form and the features that need it. `probe` checks it at start."""

from __future__ import annotations

from yggdrasill.server_ext.comfy.compat.probe import (
    EDITOR,
    ENDPOINT,
    NESTED_RUNS,
    PLACEMENT,
    REMOTE_GRAPH,
    Hold,
    calls,
    exists,
    has_keys,
    is_called_by,
    is_coroutine,
    is_route,
    takes,
)

__all__ = ["HOLDS"]

_RUNS = (ENDPOINT, PLACEMENT, NESTED_RUNS)
"""Features that run prompts of their own."""
_CALLS = (REMOTE_GRAPH, PLACEMENT)
"""Features that make calls inside a node."""
_ALL = (ENDPOINT, REMOTE_GRAPH, PLACEMENT, NESTED_RUNS, EDITOR)

_SERVER = "server:PromptServer.instance"
_QUEUE = f"{_SERVER}.prompt_queue"
_EXECUTOR = "execution:PromptExecutor"
_REGISTRY = "comfy_execution.progress:ProgressRegistry"
_PROMPT = "comfy_execution.graph:DynamicPrompt"
_MANAGEMENT = "comfy.model_management:"
_MEMORY = "comfy.memory_management:"
_FOLDERS = "folder_paths:"
_ARGS = "comfy.cli_args:args"

HOLDS: tuple[Hold, ...] = (
    # the server
    Hold(f"{_SERVER}.app", exists, (ENDPOINT, PLACEMENT, EDITOR)),
    Hold(f"{_SERVER}.routes", is_route("/object_info/{node_class}"), (ENDPOINT, PLACEMENT)),
    Hold(f"{_SERVER}.loop", exists, (*_RUNS, REMOTE_GRAPH)),
    Hold(f"{_SERVER}.sockets", has_keys, _RUNS),
    Hold(f"{_SERVER}.sockets_metadata", has_keys, (*_RUNS, REMOTE_GRAPH)),
    Hold(f"{_SERVER}.client_id", exists, (*_CALLS, NESTED_RUNS)),
    Hold(f"{_SERVER}.last_node_id", exists, (NESTED_RUNS,)),
    Hold(f"{_SERVER}.number", exists, (ENDPOINT,)),
    Hold(f"{_SERVER}.send_sync", calls("event", "data", "sid"), (*_RUNS, REMOTE_GRAPH)),
    Hold(f"{_SERVER}.send_bytes", calls("event", "data", "sid"), _CALLS),
    Hold(f"{_SERVER}.send_progress_text", calls("text", "node", "sid"), (REMOTE_GRAPH,)),
    Hold(f"{_SERVER}.add_on_prompt_handler", calls("handler"), (PLACEMENT,)),
    Hold(f"{_SERVER}.user_manager.get_request_user_id", calls("request"), (PLACEMENT,)),
    # the queue
    Hold(f"{_QUEUE}.put", calls("item"), (ENDPOINT,)),
    Hold(f"{_QUEUE}.mutex", exists, (ENDPOINT,)),
    Hold(f"{_QUEUE}.queue", exists, (ENDPOINT,)),
    Hold(f"{_QUEUE}.currently_running", has_keys, (ENDPOINT,)),
    Hold(f"{_QUEUE}.history", has_keys, (ENDPOINT,)),
    Hold(f"{_QUEUE}.delete_queue_item", calls("function"), (ENDPOINT, NESTED_RUNS)),
    Hold(f"{_QUEUE}.delete_history_item", calls("prompt_id"), (ENDPOINT,)),
    Hold(f"{_QUEUE}.interrupt_if_running", calls("prompt_id"), (ENDPOINT,)),
    # the executor
    Hold("execution:validate_prompt", is_coroutine("prompt_id", "prompt", "targets"), _RUNS),
    Hold("execution:get_input_data", calls("inputs", "class", "id", "list", "prompt", "extra"), (ENDPOINT, PLACEMENT)),
    Hold(_EXECUTOR, takes("server", cache_type=0, cache_args=0), (NESTED_RUNS,)),
    Hold(f"{_EXECUTOR}.execute_async", is_coroutine("self", "prompt", "prompt_id", "extra", "outputs"), (PLACEMENT, NESTED_RUNS)),
    Hold(f"{_EXECUTOR}.execute", is_called_by("execute_async"), (PLACEMENT,)),
    Hold(f"{_EXECUTOR}.add_message", calls("self", "event", "data", "broadcast"), (PLACEMENT, NESTED_RUNS)),
    Hold("execution:CacheType.CLASSIC", exists, (NESTED_RUNS,)),
    Hold("comfy_execution.progress:get_progress_state", calls(), _CALLS),
    Hold("comfy_execution.progress:global_progress_registry", exists, (NESTED_RUNS,)),
    Hold(f"{_REGISTRY}.ensure_entry", calls("self", "node"), (PLACEMENT,)),
    Hold(f"{_REGISTRY}.start_progress", calls("self", "node"), (PLACEMENT,)),
    Hold(f"{_REGISTRY}.update_progress", calls("self", "node", "value", "max"), _CALLS),
    Hold(f"{_REGISTRY}.finish_progress", calls("self", "node"), (PLACEMENT,)),
    Hold(f"{_PROMPT}.get_display_node_id", calls("self", "node"), _CALLS),
    Hold(f"{_PROMPT}.get_parent_node_id", calls("self", "node"), _CALLS),
    Hold(f"{_PROMPT}.get_real_node_id", calls("self", "node"), _CALLS),
    Hold(f"{_PROMPT}.has_node", calls("self", "node"), (PLACEMENT,)),
    Hold(f"{_PROMPT}.get_node", calls("self", "node"), (PLACEMENT,)),
    Hold(f"{_PROMPT}.get_original_prompt", calls("self"), (PLACEMENT,)),
    Hold("comfy_execution.utils:get_executing_context", calls(), _CALLS),
    Hold("comfy_execution.graph_utils:ExecutionBlocker", calls("message"), (ENDPOINT, *_CALLS)),
    # interrupts and memory
    Hold(f"{_MANAGEMENT}processing_interrupted", calls(), _CALLS),
    Hold(f"{_MANAGEMENT}throw_exception_if_processing_interrupted", calls(), _CALLS),
    Hold(f"{_MANAGEMENT}interrupt_current_processing", calls("value"), (NESTED_RUNS,)),
    Hold(f"{_MANAGEMENT}interrupt_processing", exists, (NESTED_RUNS,)),
    Hold(f"{_MANAGEMENT}interrupt_processing_mutex", exists, (NESTED_RUNS,)),
    Hold(f"{_MANAGEMENT}get_torch_device", calls(), ()),
    Hold(f"{_MANAGEMENT}get_all_torch_devices", calls(), ()),
    Hold(f"{_MANAGEMENT}get_free_memory", calls("device"), ()),
    Hold(f"{_MANAGEMENT}get_total_memory", calls("device"), ()),
    Hold(f"{_MEMORY}set_ram_cache_release_state", calls("callback", "headroom"), (NESTED_RUNS,)),
    Hold(f"{_MEMORY}extra_ram_release_callback", exists, (NESTED_RUNS,)),
    Hold(f"{_MEMORY}RAM_CACHE_HEADROOM", exists, (NESTED_RUNS,)),
    Hold(f"{_MANAGEMENT}free_memory", calls("required", "device"), ()),
    Hold(f"{_MANAGEMENT}minimum_inference_memory", calls(), ()),
    Hold(f"{_MANAGEMENT}total_ram", exists, ()),
    # node classes
    Hold("nodes:NODE_CLASS_MAPPINGS", has_keys, _ALL),
    Hold("comfy_api.internal:_ComfyNodeInternal", exists, (ENDPOINT, PLACEMENT)),
    Hold("comfy_api.internal:first_real_override", calls("class", "name"), (ENDPOINT, PLACEMENT)),
    Hold("comfy_api.latest._io:get_finalized_class_inputs", calls("types", "inputs"), (EDITOR,)),
    Hold("comfy_api.latest._io:build_nested_inputs", calls("values", "paths"), (EDITOR,)),
    # folders
    Hold(f"{_FOLDERS}folder_names_and_paths", has_keys, (ENDPOINT,)),
    Hold(f"{_FOLDERS}get_filename_list", calls("folder"), (ENDPOINT,)),
    Hold(f"{_FOLDERS}get_full_path", calls("folder", "name"), (ENDPOINT,)),
    Hold(f"{_FOLDERS}get_user_directory", calls(), _ALL),
    Hold(f"{_FOLDERS}get_input_directory", calls(), (ENDPOINT,)),
    Hold(f"{_FOLDERS}get_output_directory", calls(), (ENDPOINT,)),
    Hold(f"{_FOLDERS}get_temp_directory", calls(), (PLACEMENT,)),
    Hold(f"{_FOLDERS}get_directory_by_type", calls("type"), (ENDPOINT, PLACEMENT)),
    # the command line
    Hold(f"{_ARGS}.listen", exists, (ENDPOINT,)),
    Hold(f"{_ARGS}.port", exists, (ENDPOINT,)),
    Hold(f"{_ARGS}.tls_keyfile", exists, (ENDPOINT,)),
    Hold(f"{_ARGS}.tls_certfile", exists, (ENDPOINT,)),
    Hold(f"{_ARGS}.cache_classic", exists, ()),
    Hold(f"{_ARGS}.cache_none", exists, ()),
    Hold(f"{_ARGS}.cache_lru", exists, ()),
    Hold(f"{_ARGS}.cache_ram", exists, ()),
    Hold(f"{_ARGS}.multi_user", exists, (PLACEMENT,)),
    Hold(f"{_ARGS}.preview_method", exists, (*_CALLS, NESTED_RUNS)),
)
