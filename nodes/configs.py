"""Load Graph, Load Pipeline, Load Stage, World and Save Config: configs from a template, a file or text, and into a file."""

from __future__ import annotations

from typing import Any, ClassVar

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.sockets import GRAPH, PIPELINE, STAGE, WORLD, category, inputs_of

__all__ = ["LoadGraph", "LoadPipeline", "LoadStage", "SaveConfig", "WorldNode", "selected_choice"]

_FILE, _TEXT = "file", "text"


class _Load(io.ComfyNode):
    """The base of the load nodes; ``level`` is the level of their configs."""

    level: ClassVar[str]
    socket: ClassVar[Any]
    node_id: ClassVar[str]
    display_name: ClassVar[str]
    family: ClassVar[str]
    description: ClassVar[str]

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        from yggdrasill.server_ext.comfy.levels.config_sources import PREFIX, template_settings

        file = io.String.Input(
            "name",
            default="",
            tooltip="A .json or .yaml file, or a saved folder, in user/yggdrasill/configs, user/yggdrasill/worlds, input or output.",
        )
        text = io.String.Input("text", default="", multiline=True, tooltip=f"The config of the {cls.level} as JSON or YAML.")
        options = [io.DynamicCombo.Option(PREFIX + name, inputs_of(settings)) for name, settings in template_settings(cls.level).items()]
        options += [io.DynamicCombo.Option(_FILE, [file]), io.DynamicCombo.Option(_TEXT, [text])]
        return io.Schema(
            node_id=cls.node_id,
            display_name=cls.display_name,
            category=category(cls.family),
            description=cls.description,
            search_aliases=["yggdrasill", f"load {cls.level}", f"{cls.level} template", f"{cls.level} config", "open"],
            inputs=[
                io.DynamicCombo.Input(
                    "source",
                    options=options,
                    tooltip=f"A template with parameters, a file, or text with the config of the {cls.level}.",
                )
            ],
            outputs=[cls.socket.Output(display_name=cls.level, tooltip=f"The config of the {cls.level}.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, source: Any = None) -> Any:
        """Return a value that changes when the file changes."""
        from yggdrasill.server_ext.comfy.levels.config_sources import fingerprint

        return fingerprint(source)

    @classmethod
    def execute(cls, source: dict[str, Any] | None = None) -> Any:
        """Return the config. Raises as `from_template`, `from_file` and `from_text`."""
        from yggdrasill.server_ext.comfy.levels.config_sources import load_source

        return io.NodeOutput(load_source(cls.level, source, selected_choice(cls, "source")))


def selected_choice(cls: type[io.ComfyNode], name: str) -> str:
    """Return the choice in the prompt. ComfyUI drops a choice that is not (or no longer) in the list."""
    if cls.hidden is None:  # called outside a prompt
        return ""
    prompt, node = cls.hidden.prompt or {}, str(cls.hidden.unique_id)
    return str(prompt.get(node, {}).get("inputs", {}).get(name, ""))


class LoadGraph(_Load):
    """Loads a graph of blocks, or a ComfyUI workflow with ports."""

    level = "graph"
    socket = GRAPH
    node_id = "YggdrasillLoadGraph"
    display_name = "Load Graph (Yggdrasill)"
    family = "Graph"
    description = "Loads a graph of blocks, or a ComfyUI workflow with ports, from a template, a file or text."


class LoadPipeline(_Load):
    """Loads a pipeline."""

    level = "pipeline"
    socket = PIPELINE
    node_id = "YggdrasillLoadPipeline"
    display_name = "Load Pipeline"
    family = "Pipeline"
    description = "Loads a pipeline of graphs from a template, a file or text."


class LoadStage(_Load):
    """Loads a stage."""

    level = "stage"
    socket = STAGE
    node_id = "YggdrasillLoadStage"
    display_name = "Load Stage"
    family = "World"
    description = "Loads a stage of a world from a template, a file or text."


class WorldNode(_Load):
    """Loads a world."""

    level = "world"
    socket = WORLD
    node_id = "YggdrasillWorld"
    display_name = "World (Yggdrasill)"
    family = "World"
    description = "Loads a world from a template, a file or text: a ring of stages that evolves a state of five blocks."


class SaveConfig(io.ComfyNode):
    """Saves a config to a file."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id="YggdrasillSaveConfig",
            display_name="Save Config",
            category=category("Graph"),
            description="Saves a graph, pipeline, stage or world in user/yggdrasill/configs, for the load nodes and for from_yaml in Python.",
            search_aliases=["yggdrasill", "save graph", "export config", "save pipeline"],
            is_output_node=True,
            inputs=[
                io.MultiType.Input("config", [GRAPH, PIPELINE, STAGE, WORLD], tooltip="The config to save."),
                io.String.Input("name", default="", tooltip="The file name, ending in .yaml or .json. Blank: the id with .yaml."),
            ],
            outputs=[
                io.String.Output(display_name="name", tooltip="The file name for the load nodes."),
                io.String.Output(display_name="text", tooltip="The config as text."),
            ],
        )

    @classmethod
    def execute(cls, config: dict[str, Any], name: str) -> Any:
        """Write the file, and return its name and text."""
        from yggdrasill.server_ext.comfy.levels.saving import save_config

        return io.NodeOutput(*save_config(config, name))
