"""The machine as ComfyUI knows it: its folders, its model files, and the devices that it computes on."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from yggdrasill.server_ext.comfy.compat.server import prompt_server

__all__ = [
    "base_folder",
    "compute_devices",
    "enrich_files",
    "media_folders",
    "model_folders",
    "model_names",
    "model_path",
    "named_folder",
    "named_model_folders",
    "pack_folders",
    "temporary_folder",
    "user_directory",
]


def _folders() -> Any:
    return importlib.import_module("folder_paths")


def user_directory() -> str:
    """Return the folder of ComfyUI's user files."""
    return str(_folders().get_user_directory())


def media_folders() -> list[Path]:
    """Return ComfyUI's input and output folders. Every client that may post a prompt can read and write them through ComfyUI's own nodes."""
    return [Path(_folders().get_input_directory()), Path(_folders().get_output_directory())]


def base_folder() -> Path:
    """Return ComfyUI's base folder."""
    return Path(_folders().base_path)


def pack_folders() -> list[Path]:
    """Return the folders that contain node packs."""
    return [Path(folder) for folder in _folders().get_folder_paths("custom_nodes")]


def temporary_folder() -> Path:
    """Return ComfyUI's folder for temporary files, which exists then."""
    folder = Path(_folders().get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def named_folder(name: str) -> Path | None:
    """Return the folder that ComfyUI calls ``input``, ``output`` or ``temp``; None for another name."""
    folder = _folders().get_directory_by_type(name)
    return None if folder is None else Path(folder)


def enrich_files(output: Any, prompt_id: str) -> Any:
    """Return what a node shows with what ComfyUI adds to the files of its own nodes: media properties, and their ids as assets of this server.

    ComfyUI 0.26 to 0.33 add ids alone, and only with ``--enable-assets``.
    """
    media, assets = _optional("comfy_execution.media_enrichment"), _optional("comfy_execution.asset_enrichment")
    if hasattr(media, "enrich_output_with_media_metadata"):
        output = media.enrich_output_with_media_metadata(output)
    manager = getattr(prompt_server(), "asset_manager", None)
    if manager is not None and hasattr(assets, "register_executed_outputs"):
        return assets.register_executed_outputs(output, prompt_id, manager)
    if hasattr(assets, "enrich_output_with_assets"):
        return assets.enrich_output_with_assets(output)
    return output


def _optional(name: str) -> Any:
    """Return a module that not every ComfyUI has, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def model_folders() -> list[Path]:
    """Return the folders in which ComfyUI finds models."""
    named = _folders().folder_names_and_paths
    return sorted({Path(folder) for key, entry in named.items() if key != "custom_nodes" for folder in entry[0]})


def named_model_folders() -> dict[str, Path]:
    """Return the folder for new files of each kind of model."""
    named = _folders().folder_names_and_paths
    return {str(key): Path(entry[0][0]) for key, entry in named.items() if key not in ("configs", "custom_nodes") and entry[0]}


def model_names() -> dict[str, list[str]]:
    """Return the names of the files in each kind of model folder, as ComfyUI spells them."""
    folders = _folders()
    return {str(name): list(folders.get_filename_list(name)) for name in folders.folder_names_and_paths if name != "custom_nodes"}


def model_path(kind: str, name: str) -> Path | None:
    """Return the path of a file in the model folders of a kind, or None if it does not exist."""
    path = _folders().get_full_path(kind, name)
    return None if path is None else Path(path)


def compute_devices() -> list[tuple[str, int, int]]:
    """Return name, free and total bytes of each device that ComfyUI computes on, its preferred device first.

    A GPU that ComfyUI has not used yet is left out: the query would create a CUDA context, which takes some hundred MB of it.
    """
    management = importlib.import_module("comfy.model_management")
    first = management.get_torch_device()
    devices: Iterable[Any] = [first, *(device for device in management.get_all_torch_devices() if device != first and _is_used(device))]
    return [(str(device), int(management.get_free_memory(device)), int(management.get_total_memory(device))) for device in devices]


def _is_used(device: Any) -> bool:
    if getattr(device, "type", None) != "cuda":
        return True
    import torch

    return bool(torch.cuda.memory_reserved(device) > 0)
