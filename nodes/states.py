"""State and Read State: the five blocks of a world's state made, edited and looked into."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.types import STATE, category

__all__ = ["ReadState", "StateNode"]

_BLOCKS = {
    1: "What should happen",
    2: "The configuration that artifacts are made from",
    3: "The artifacts, such as pictures",
    4: "The description of the artifacts",
    5: "What really happened",
}


class StateNode(io.ComfyNode):
    """A state, new or changed."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        sockets = [
            io.AnyType.Input(f"block_{number}", optional=True, tooltip=f"{meaning} (block {number}).")
            for number, meaning in _BLOCKS.items()
        ]
        return io.Schema(
            node_id="YggdrasillState",
            display_name="State",
            category=category("World"),
            description="Makes a state of five blocks, or changes blocks of one.",
            search_aliases=["yggdrasill", "edit state", "blocks", "new state"],
            inputs=[
                STATE.Input("state", optional=True, tooltip="The state to change; without one a new one."),
                io.String.Input(
                    "edits",
                    default="",
                    multiline=True,
                    placeholder="1: A storm in the north\n5: null",
                    tooltip="Blocks (1 to 5) and fields as YAML; null empties one, content is the world's content.",
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
        """Give the new state."""
        from yggdrasill.server_ext.comfy.levels.states import edit_state

        return io.NodeOutput(edit_state(state, edits, dict(enumerate((block_1, block_2, block_3, block_4, block_5), 1))))


class ReadState(io.ComfyNode):
    """What is in a state."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        blocks = [io.AnyType.Output(f"block_{number}", tooltip=f"{meaning}.") for number, meaning in _BLOCKS.items()]
        return io.Schema(
            node_id="YggdrasillReadState",
            display_name="Read State",
            category=category("World"),
            description="The blocks of a state, its pictures and words, and the world's chronicle.",
            search_aliases=["yggdrasill", "split state", "blocks", "chronicle"],
            inputs=[STATE.Input("state", tooltip="The state to read.")],
            outputs=[
                *blocks,
                io.Image.Output("images", display_name="images", tooltip="The pictures in block 3.", is_output_list=True),
                io.String.Output(
                    "text", display_name="text", tooltip="The newest words: what happened, else what is seen, else what should happen."
                ),
                io.String.Output("chronicle", display_name="chronicle", tooltip="The story of the world so far."),
                io.Int.Output("passes", display_name="passes", tooltip="How many full passes are behind the state."),
            ],
        )

    @classmethod
    def execute(cls, state: Any) -> Any:
        """Give the blocks; an empty one, or none at all, blocks what depends on it."""
        from comfy_execution.graph_utils import ExecutionBlocker

        from yggdrasill.server_ext.comfy.levels.states import chronicle_text, parse_state, state_pictures, state_text
        from yggdrasill.stage import State

        found = parse_state(state) or State()
        blocks = [ExecutionBlocker(None) if found[number] is None else found[number] for number in _BLOCKS]
        pictures = state_pictures(found) or [ExecutionBlocker(None)]
        return io.NodeOutput(*blocks, pictures, state_text(found), chronicle_text(found.content), found.passes)
