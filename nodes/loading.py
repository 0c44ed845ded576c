"""Load Graph, Load Pipeline, Load Stage and World: a config from a template, a file or pasted text."""

from __future__ import annotations

from typing import Any, ClassVar

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.types import GRAPH, PIPELINE, STAGE, WORLD, category
from yggdrasill.nodes.widgets import inputs_of

__all__ = ["LoadGraph", "LoadPipeline", "LoadStage", "WorldNode", "chosen"]

_FILE, _TEXT = "file", "text"


class _Load(io.ComfyNode):
    """What the four have in common; ``level`` tells them apart."""

    level: ClassVar[str]
    socket: ClassVar[Any]
    node_id: ClassVar[str]
    shown: ClassVar[str]
    family: ClassVar[str]
    about: ClassVar[str]

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        from yggdrasill.server_ext.comfy.levels.config_sources import PREFIX, template_settings

        file = io.String.Input(
            "name",
            default="",
            tooltip="A .json or .yaml file, or a saved folder, below user/yggdrasill/configs or worlds, or input or output.",
        )
        text = io.String.Input("text", default="", multiline=True, tooltip=f"The config of a {cls.level} in JSON or YAML.")
        options = [io.DynamicCombo.Option(PREFIX + name, inputs_of(settings)) for name, settings in template_settings(cls.level).items()]
        options += [io.DynamicCombo.Option(_FILE, [file]), io.DynamicCombo.Option(_TEXT, [text])]
        return io.Schema(
            node_id=cls.node_id,
            display_name=cls.shown,
            category=category(cls.family),
            description=cls.about,
            search_aliases=["yggdrasill", f"load {cls.level}", f"{cls.level} template", f"{cls.level} config", "open"],
            inputs=[
                io.DynamicCombo.Input(
                    "source",
                    options=options,
                    tooltip=f"A template with its parameters, a file, or pasted text that describes the {cls.level}.",
                )
            ],
            outputs=[cls.socket.Output(display_name=cls.level, tooltip=f"The {cls.level}'s config.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, source: Any = None) -> Any:
        """A file is read again when it changed."""
        from yggdrasill.server_ext.comfy.levels.config_sources import fingerprint

        return fingerprint(source)

    @classmethod
    def execute(cls, source: dict[str, Any] | None = None) -> Any:
        """Give the config; raises as `from_template`, `from_file`, `from_text`."""
        from yggdrasill.server_ext.comfy.levels.config_sources import load_source

        return io.NodeOutput(load_source(cls.level, source, chosen(cls, "source")))


def chosen(cls: type[io.ComfyNode], name: str) -> str:
    """What the prompt has as the choice of a list: ComfyUI drops one that the list does not have (any more)."""
    if cls.hidden is None:  # asked apart from any prompt
        return ""
    prompt, node = cls.hidden.prompt or {}, str(cls.hidden.unique_id)
    return str(prompt.get(node, {}).get("inputs", {}).get(name, ""))


class LoadGraph(_Load):
    """A graph of blocks, or a ComfyUI workflow with ports."""

    level = "graph"
    socket = GRAPH
    node_id = "YggdrasillLoadGraph"
    shown = "Load Graph"
    family = "Graph"
    about = "A graph of blocks from a template, a file or pasted text. A ComfyUI workflow with ports is a graph too."


class LoadPipeline(_Load):
    """A pipeline."""

    level = "pipeline"
    socket = PIPELINE
    node_id = "YggdrasillLoadPipeline"
    shown = "Load Pipeline"
    family = "Pipeline"
    about = "Graphs linked into a pipeline, from a template, a file or pasted text."


class LoadStage(_Load):
    """A stage."""

    level = "stage"
    socket = STAGE
    node_id = "YggdrasillLoadStage"
    shown = "Load Stage"
    family = "World"
    about = "One stage of a world, from a template, a file or pasted text."


class WorldNode(_Load):
    """A world."""

    level = "world"
    socket = WORLD
    node_id = "YggdrasillWorld"
    shown = "World"
    family = "World"
    about = "A world: stages in a ring that develop a state of five blocks. From a template, a file or pasted text."
