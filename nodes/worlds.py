"""Run World, Save World and Load World."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.types import STATE, WORLD, category, own_seed_input

__all__ = ["LoadWorld", "RunWorld", "SaveWorld"]


class RunWorld(io.ComfyNode):
    """Passes of a world."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        return io.Schema(
            node_id="YggdrasillRunWorld",
            display_name="Run World",
            category=category("World"),
            description="Runs passes of a world, each part where endpoints.yaml places it. A run that was stopped goes on where it was.",
            search_aliases=["yggdrasill", "simulate", "episode", "chronicle", "world step"],
            is_output_node=True,
            inputs=[
                WORLD.Input("world", tooltip="The world that runs."),
                STATE.Input("state", optional=True, tooltip="The state to begin with; without one the world begins."),
                io.String.Input(
                    "action",
                    default="",
                    multiline=True,
                    tooltip="What somebody does in the world, heard in the first pass; a line of --- divides it from the next pass's.",
                ),
                io.Int.Input("steps", default=1, min=0, max=1_000_000, tooltip="How many full passes."),
                own_seed_input(),
                io.Boolean.Input(
                    "keep",
                    default=True,
                    tooltip="Keep each pass in user/yggdrasill/worlds, so that a run that was stopped goes on when it is run again.",
                ),
            ],
            outputs=[
                STATE.Output(display_name="state", tooltip="The state after the last pass."),
                io.Image.Output("images", display_name="images", tooltip="The pictures after each pass of this run.", is_output_list=True),
                io.String.Output("text", display_name="text", tooltip="The newest words of the state."),
                io.String.Output("chronicle", display_name="chronicle", tooltip="The story of the world so far."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    async def execute(cls, world: dict[str, Any], action: str, steps: int, seed: int, keep: bool, state: Any = None) -> Any:
        """Give the last state and what was seen on the way."""
        from comfy_execution.graph_utils import ExecutionBlocker

        from yggdrasill.nodes.pictures import preview_of
        from yggdrasill.server_ext.comfy.levels.node_work import NodeWork
        from yggdrasill.server_ext.comfy.levels.states import chronicle_text, state_text
        from yggdrasill.server_ext.comfy.levels.world_run import WorldCall, actions_of, run_world

        own = None if seed < 0 else seed
        call = WorldCall(world, state, actions_of(action), steps, own, keep)
        result = await NodeWork(str(cls.hidden.unique_id), lambda work: run_world(work, call), seed=own).result()
        pictures = result.pictures or [ExecutionBlocker(None)]
        words = state_text(result.state), chronicle_text(result.state.content)
        return io.NodeOutput(result.state.to_dict(), pictures, *words, ui=preview_of(result.pictures, cls))


class SaveWorld(io.ComfyNode):
    """A world and its state into its folder."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        return io.Schema(
            node_id="YggdrasillSaveWorld",
            display_name="Save World",
            category=category("World"),
            description="Saves a world and its state below user/yggdrasill/worlds, as World.save does in Python.",
            search_aliases=["yggdrasill", "store world", "export world"],
            is_output_node=True,
            inputs=[
                WORLD.Input("world", tooltip="The world to save."),
                STATE.Input("state", optional=True, tooltip="Its state; without one the world alone is saved."),
                io.String.Input("name", default="", tooltip="The name of its folder; blank is the world's id. What was there is replaced."),
            ],
            outputs=[io.String.Output(display_name="name", tooltip="The name that Load World knows it by.")],
        )

    @classmethod
    def execute(cls, world: dict[str, Any], name: str, state: Any = None) -> Any:
        """Save and give the name."""
        from yggdrasill.server_ext.comfy.levels.states import parse_state
        from yggdrasill.server_ext.comfy.levels.world_folder import save_world

        return io.NodeOutput(save_world(world, parse_state(state), name).name)


class LoadWorld(io.ComfyNode):
    """A world that was saved, or that a stopped run left."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        return io.Schema(
            node_id="YggdrasillLoadWorld",
            display_name="Load World",
            category=category("World"),
            description="A world kept below user/yggdrasill/worlds, with the newest state it was saved with or that a run reached.",
            search_aliases=["yggdrasill", "open world", "resume world"],
            inputs=[io.String.Input("name", default="", tooltip="The name it was saved under, or the id of a world that was run.")],
            outputs=[
                WORLD.Output(display_name="world", tooltip="The world's config."),
                STATE.Output(display_name="state", tooltip="Its newest state; without one what depends on it does not run."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str = "") -> Any:
        """It is read again when it changed."""
        from yggdrasill.server_ext.comfy.levels.world_folder import world_stamp

        return world_stamp(name)

    @classmethod
    def execute(cls, name: str) -> Any:
        """Give the world and its state."""
        from comfy_execution.graph_utils import ExecutionBlocker

        from yggdrasill.server_ext.comfy.levels.world_folder import load_world

        config, state = load_world(name.strip())
        return io.NodeOutput(config, ExecutionBlocker(None) if state is None else state.to_dict())
