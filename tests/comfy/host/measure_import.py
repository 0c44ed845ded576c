# ruff: noqa: E402, I001
# mypy: ignore-errors
"""Prints the CPU seconds that loading the pack takes in a ComfyUI: ``measure_import.py COMFYUI PACK FOLDER_OF_COMPILED_FILES``."""

import asyncio
import importlib.util
import sys
import time

folder, pack, compiled = sys.argv[1:4]
sys.dont_write_bytecode, sys.pycache_prefix = False, compiled
sys.path.insert(0, folder)
sys.argv[1:] = ["--cpu"]

import comfy.options

comfy.options.enable_args_parsing()

import execution
import nodes
import server

began = time.process_time()
spec = importlib.util.spec_from_file_location("pack", f"{pack}/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
extension = asyncio.run(module.comfy_entrypoint())
attach = importlib.import_module("yggdrasill.server_ext.comfy.attach")
seconds = time.process_time() - began
sys.stdout.write(f"{execution.__name__} {nodes.__name__} {server.__name__} {attach.__name__} {extension} {seconds}\n")
