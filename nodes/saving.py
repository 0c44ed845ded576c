"""Save Config: what was built with nodes as a file that Python and Load nodes read."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.types import GRAPH, PIPELINE, STAGE, WORLD, category

__all__ = ["SaveConfig"]


class SaveConfig(io.ComfyNode):
    """A config into a file."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        return io.Schema(
            node_id="YggdrasillSaveConfig",
            display_name="Save Config",
            category=category("Graph"),
            description="Saves a graph, pipeline, stage or world below user/yggdrasill/configs, for Load nodes and for from_yaml in Python.",
            search_aliases=["yggdrasill", "save graph", "export config", "save pipeline"],
            is_output_node=True,
            inputs=[
                io.MultiType.Input("config", [GRAPH, PIPELINE, STAGE, WORLD], tooltip="What to save."),
                io.String.Input("name", default="", tooltip="The name of the file, ending in .yaml or .json; blank is the id with .yaml."),
            ],
            outputs=[
                io.String.Output(display_name="name", tooltip="The name that Load nodes know the file by."),
                io.String.Output(display_name="text", tooltip="The config as text."),
            ],
        )

    @classmethod
    def execute(cls, config: dict[str, Any], name: str) -> Any:
        """Write the file; give its name and text."""
        from yggdrasill.server_ext.comfy.levels.saving import save_config

        return io.NodeOutput(*save_config(config, name))
