"""State and Read State: create, edit and read the five blocks of a world's state."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.sockets import STATE, category
from yggdrasill.server_ext.comfy.compat import execution_blocker

__all__ = ["ReadState", "StateNode"]

_BLOCKS = {
    1: "What should happen",
    2: "The configuration that artifacts are made from",
    3: "The artifacts, such as images",
    4: "The description of the artifacts",
    5: "What really happened",
}


class StateNode(io.ComfyNode):
    """Creates or edits a state."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        sockets = [
            io.AnyType.Input(f"block_{number}", optional=True, tooltip=f"{meaning} (block {number}).")
            for number, meaning in _BLOCKS.items()
        ]
        return io.Schema(
            node_id="YggdrasillState",
            display_name="State (Yggdrasill)",
            category=category("World"),
            description="Creates a state of five blocks, or edits one.",
            search_aliases=["yggdrasill", "edit state", "blocks", "new state"],
            inputs=[
                STATE.Input("state", optional=True, tooltip="The state to edit. Unconnected: a new state."),
                io.String.Input(
                    "edits",
                    default="",
                    multiline=True,
                    placeholder="1: A storm in the north\n5: null",
                    tooltip="Blocks (1 to 5) and fields as YAML. null clears a block; content is the content of the world.",
                ),
                *sockets,
            ],
            outputs=[STATE.Output(display_name="state", tooltip="The new state.")],
        )

    @classmethod
    def execute(
        cls,
        edits: str,
        state: Any = None,
        block_1: Any = None,
        block_2: Any = None,
        block_3: Any = None,
        block_4: Any = None,
        block_5: Any = None,
    ) -> Any:
        """Return the new state."""
        from yggdrasill.server_ext.comfy.levels.states import edit_state

        return io.NodeOutput(edit_state(state, edits, dict(enumerate((block_1, block_2, block_3, block_4, block_5), 1))))


class ReadState(io.ComfyNode):
    """Reads a state."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        blocks = [io.AnyType.Output(f"block_{number}", tooltip=f"{meaning}.") for number, meaning in _BLOCKS.items()]
        return io.Schema(
            node_id="YggdrasillReadState",
            display_name="Read State",
            category=category("World"),
            description="Returns the blocks of a state, its images and text, and the world's chronicle.",
            search_aliases=["yggdrasill", "split state", "blocks", "chronicle"],
            inputs=[STATE.Input("state", tooltip="The state to read.")],
            outputs=[
                *blocks,
                io.Image.Output("images", display_name="images", tooltip="The images in block 3.", is_output_list=True),
                io.String.Output("text", display_name="text", tooltip="The newest text: block 5, else block 4, else block 1."),
                io.String.Output("chronicle", display_name="chronicle", tooltip="The story of the world so far."),
                io.Int.Output("passes", display_name="passes", tooltip="The number of full passes that led to the state."),
            ],
        )

    @classmethod
    def execute(cls, state: Any) -> Any:
        """Return the blocks of the state. An empty block blocks the nodes that need it."""

        from yggdrasill.server_ext.comfy.levels.states import chronicle_text, parse_state, state_pictures, state_text
        from yggdrasill.stage import State

        state_content = parse_state(state) or State()
        blocks = [execution_blocker() if state_content[number] is None else state_content[number] for number in _BLOCKS]
        images = state_pictures(state_content) or [execution_blocker()]
        return io.NodeOutput(*blocks, images, state_text(state_content), chronicle_text(state_content.content), state_content.passes)
