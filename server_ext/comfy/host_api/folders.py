"""ComfyUI's folders: user files, inputs and outputs, and models."""

from __future__ import annotations

import importlib
from pathlib import Path

__all__ = ["media_folders", "model_folders", "named_model_folders", "user_directory"]


def user_directory() -> str:
    """Return the folder of ComfyUI's user files."""
    return str(importlib.import_module("folder_paths").get_user_directory())


def media_folders() -> list[Path]:
    """Return ComfyUI's input and output folders. Every client that may post a prompt can read and write them through ComfyUI's own nodes."""
    paths = importlib.import_module("folder_paths")
    return [Path(paths.get_input_directory()), Path(paths.get_output_directory())]


def model_folders() -> list[Path]:
    """Return the folders in which ComfyUI finds models."""
    named = importlib.import_module("folder_paths").folder_names_and_paths
    return sorted({Path(folder) for key, entry in named.items() if key != "custom_nodes" for folder in entry[0]})


def named_model_folders() -> dict[str, Path]:
    """Return the folder for new files of each kind of model."""
    named = importlib.import_module("folder_paths").folder_names_and_paths
    return {str(key): Path(entry[0][0]) for key, entry in named.items() if key not in ("configs", "custom_nodes") and entry[0]}
