# mypy: ignore-errors
"""A custom node pack for servers that only validate prompts: a route that calls ComfyUI's validation, and a file in every model folder.

The name of the file in an error shows that an input chooses from the files of a folder: only such a value may be missing.
"""

from pathlib import Path

import execution
import folder_paths
from aiohttp import web
from server import PromptServer

__all__ = ["NODE_CLASS_MAPPINGS"]

NODE_CLASS_MAPPINGS = {}
MARKER = "a file of this folder"


def _fill(folder, extensions):
    ending = ".safetensors" if not extensions or ".safetensors" in extensions else next(iter(extensions))
    if ending != "folder":
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / (MARKER + ending)).touch()


for _name, (_folders, _extensions) in list(folder_paths.folder_names_and_paths.items()):
    if _name not in {"custom_nodes", "datasets"}:
        _fill(_folders[0], _extensions)
for _ending in (".png", ".mp4", ".wav", ".glb", ".latent", ".txt"):
    _fill(folder_paths.get_input_directory(), {_ending})


@PromptServer.instance.routes.post("/tests/validate")
async def validate(request):
    answers = []
    for prompt in await request.json():
        valid, error, _, node_errors = await execution.validate_prompt("validation", prompt, None)
        own = [] if valid and not node_errors else [] if node_errors else [[None, error["type"], f"{error['message']} {error['details']}"]]
        inner = [[node_id, one["type"], one["details"]] for node_id, facts in node_errors.items() for one in facts["errors"]]
        answers.append(own + inner)
    return web.json_response(answers)
