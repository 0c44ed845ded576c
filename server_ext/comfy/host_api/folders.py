"""The folders of the ComfyUI around: its user's files, inputs and outputs, models."""

from __future__ import annotations

import importlib
from pathlib import Path

__all__ = ["media_folders", "model_folders", "named_model_folders", "user_directory"]


def user_directory() -> str:
    """The folder ComfyUI keeps its user's files in."""
    return str(importlib.import_module("folder_paths").get_user_directory())


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
