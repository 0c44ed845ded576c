"""Run World, Save World and Load World: run passes of a world, and keep it in a folder."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.sockets import STATE, WORLD, category, optional_seed_input, preview_of
from yggdrasill.server_ext.comfy.compat import execution_blocker

__all__ = ["LoadWorld", "RunWorld", "SaveWorld"]


class RunWorld(io.ComfyNode):
    """Runs passes of a world."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id="YggdrasillRunWorld",
            display_name="Run World",
            category=category("World"),
            description="Runs passes of a world, each part where endpoints.yaml places it. A stopped run resumes where it was.",
            search_aliases=["yggdrasill", "simulate", "episode", "chronicle", "world step"],
            is_output_node=True,
            inputs=[
                WORLD.Input("world", tooltip="The world to run."),
                STATE.Input("state", optional=True, tooltip="The state to start from. Unconnected: the world's initial state."),
                io.String.Input(
                    "action",
                    default="",
                    multiline=True,
                    tooltip="An action in the world for the first pass. A line of --- separates it from the action of the next pass.",
                ),
                io.Int.Input("steps", default=1, min=0, max=1_000_000, tooltip="The number of full passes."),
                optional_seed_input(),
                io.Boolean.Input(
                    "keep",
                    default=True,
                    tooltip="Save each pass in user/yggdrasill/worlds, so that a stopped run resumes when it is run again.",
                ),
            ],
            outputs=[
                STATE.Output(display_name="state", tooltip="The state after the last pass."),
                io.Image.Output("images", display_name="images", tooltip="The images after each pass of this run.", is_output_list=True),
                io.String.Output("text", display_name="text", tooltip="The newest text of the state."),
                io.String.Output("chronicle", display_name="chronicle", tooltip="The story of the world so far."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    async def execute(cls, world: dict[str, Any], action: str, steps: int, seed: int, keep: bool, state: Any = None) -> Any:
        """Return the last state, the images of all passes, the text and the chronicle."""

        from yggdrasill.server_ext.comfy.levels.node_work import NodeWork
        from yggdrasill.server_ext.comfy.levels.states import chronicle_text, state_text
        from yggdrasill.server_ext.comfy.levels.world_run import WorldCall, actions_of, run_world

        run_seed = None if seed < 0 else seed
        call = WorldCall(world, state, actions_of(action), steps, run_seed, keep)
        result = await NodeWork(str(cls.hidden.unique_id), lambda work: run_world(work, call), seed=run_seed).result()
        images = result.pictures or [execution_blocker()]
        text = state_text(result.state), chronicle_text(result.state.content)
        return io.NodeOutput(result.state.to_dict(), images, *text, ui=preview_of(result.pictures, cls))


class SaveWorld(io.ComfyNode):
    """Saves a world and its state in a folder."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id="YggdrasillSaveWorld",
            display_name="Save World",
            category=category("World"),
            description="Saves a world and its state in user/yggdrasill/worlds, like World.save in Python.",
            search_aliases=["yggdrasill", "store world", "export world"],
            is_output_node=True,
            inputs=[
                WORLD.Input("world", tooltip="The world to save."),
                STATE.Input("state", optional=True, tooltip="The state to save. Unconnected: only the world is saved."),
                io.String.Input(
                    "name", default="", tooltip="The name of the folder. Blank: the id of the world. An existing save is replaced."
                ),
            ],
            outputs=[io.String.Output(display_name="name", tooltip="The name for Load World.")],
        )

    @classmethod
    def execute(cls, world: dict[str, Any], name: str, state: Any = None) -> Any:
        """Save the world, and return its name."""
        from yggdrasill.server_ext.comfy.levels.states import parse_state
        from yggdrasill.server_ext.comfy.levels.world_folder import save_world

        return io.NodeOutput(save_world(world, parse_state(state), name).name)


class LoadWorld(io.ComfyNode):
    """Loads a world that was saved by Save World or by a run."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id="YggdrasillLoadWorld",
            display_name="Load World",
            category=category("World"),
            description="Loads a world from user/yggdrasill/worlds, with its newest state from Save World or from a run.",
            search_aliases=["yggdrasill", "open world", "resume world"],
            inputs=[io.String.Input("name", default="", tooltip="The name of a saved world, or the id of a world that was run.")],
            outputs=[
                WORLD.Output(display_name="world", tooltip="The config of the world."),
                STATE.Output(display_name="state", tooltip="Its newest state. Without a state, the nodes that need it do not run."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str = "") -> Any:
        """Return a value that changes when the saved world changes."""
        from yggdrasill.server_ext.comfy.levels.world_folder import world_stamp

        return world_stamp(name)

    @classmethod
    def execute(cls, name: str) -> Any:
        """Return the world and its state."""

        from yggdrasill.server_ext.comfy.levels.world_folder import load_world

        config, state = load_world(name.strip())
        return io.NodeOutput(config, execution_blocker() if state is None else state.to_dict())
