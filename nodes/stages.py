"""Stage, Run Stage and World from Stages: build a world on the canvas."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.sockets import (
    GRAPH,
    PIPELINE,
    STAGE,
    STATE,
    WORLD,
    category,
    linked_parts,
    names_input,
    optional_seed_input,
    part_inputs,
)

__all__ = ["RunStage", "StageNode", "WorldFromStages"]

_CONDITION = (
    "When the stage runs. Blank: always; a preset (philosopher, author, world_update); or blocks that must be filled, such as '1, 2', "
    "while the blocks that it writes are empty."
)


class StageNode(io.ComfyNode):
    """Composes pipelines into a stage with a state contract."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        from yggdrasill.stage.stage import ROLES

        part = io.MultiType.Input("pipeline", [PIPELINE, GRAPH], optional=True, tooltip="A pipeline of the stage, or a single graph.")
        return io.Schema(
            node_id="YggdrasillStage",
            display_name="Stage (Yggdrasill)",
            category=category("World"),
            description="Composes pipelines that read blocks of a world's state and write others.",
            search_aliases=["yggdrasill", "state contract", "philosopher", "author", "environment", "architect", "creator"],
            inputs=[
                part_inputs("pipelines", part, "p", "The pipelines, in order."),
                io.String.Input("stage_id", default="stage", tooltip="The id of the stage, by which the registry places the whole stage."),
                io.Combo.Input(
                    "role", options=["none", *ROLES], default="none", tooltip="The role of the stage among the five of the canonical ring."
                ),
                io.String.Input(
                    "connections",
                    default="",
                    multiline=True,
                    placeholder="2 -> creator.configuration\ncreator.artifacts -> 3",
                    tooltip="One per line: '2 -> a.in' reads block 2 of the state, 'a.out -> 3' writes block 3, 'a.out -> b.in' connects two "
                    "pipelines. In place of 1 to 5 use fields by name, or (read only) action and content.",
                ),
                io.String.Input("condition", default="", tooltip=_CONDITION),
                io.String.Input(
                    "reads", default="", tooltip="The blocks to read, such as '1, 2'. Blank: those in the connections.", advanced=True
                ),
                io.String.Input("writes", default="", tooltip="The blocks to write. Blank: those in the connections.", advanced=True),
                io.String.Input(
                    "conditions",
                    default="",
                    multiline=True,
                    tooltip="Conditions of individual pipelines, one 'name: condition' per line.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "carry",
                    default=True,
                    tooltip="Keep blocks that the stage does not write. Off: keep only written blocks.",
                    advanced=True,
                ),
                names_input("pipelines"),
            ],
            outputs=[STAGE.Output(display_name="stage", tooltip="The config of the stage.")],
        )

    @classmethod
    def execute(
        cls,
        pipelines: dict[str, Any],
        stage_id: str,
        role: str,
        connections: str,
        condition: str,
        reads: str,
        writes: str,
        conditions: str,
        carry: bool,
        names: str,
    ) -> Any:
        """Return the config of the stage."""
        from yggdrasill.server_ext.comfy.levels.world_composing import make_stage

        settings: dict[str, Any] = {"reads": reads, "writes": writes, "condition": condition, "conditions": conditions, "carry": carry}
        return io.NodeOutput(make_stage(stage_id, role, linked_parts(pipelines), names=names, lines=connections, **settings))


class RunStage(io.ComfyNode):
    """Runs a stage once."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id="YggdrasillRunStage",
            display_name="Run Stage",
            category=category("World"),
            description="Runs a stage on a state if its condition is met; otherwise returns the state unchanged.",
            search_aliases=["yggdrasill", "execute stage"],
            inputs=[
                STAGE.Input("stage", tooltip="The stage to run."),
                STATE.Input("state", optional=True, tooltip="The state to read. Unconnected: an empty state."),
                io.String.Input("action", default="", multiline=True, tooltip="An action in the world, for ports that read the action."),
                optional_seed_input(),
            ],
            outputs=[STATE.Output(display_name="state", tooltip="The state with the blocks that the stage wrote.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    async def execute(cls, stage: dict[str, Any], action: str, seed: int, state: Any = None) -> Any:
        """Return the new state."""
        from yggdrasill.server_ext.comfy.levels.node_work import NodeWork
        from yggdrasill.server_ext.comfy.levels.world_run import run_stage

        run_seed = None if seed < 0 else seed
        after = await NodeWork(
            str(cls.hidden.unique_id), lambda work: run_stage(work, stage, state, action, run_seed), seed=run_seed
        ).result()
        return io.NodeOutput(after.to_dict())


class WorldFromStages(io.ComfyNode):
    """Composes stages into a world."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        part = STAGE.Input("stage", optional=True, tooltip="A stage of the world.")
        return io.Schema(
            node_id="YggdrasillWorldFromStages",
            display_name="World from Stages",
            category=category("World"),
            description="Composes stages into a world, a ring of stages. With one stage of each role it is the canonical ring.",
            search_aliases=["yggdrasill", "compose world", "ring", "cycle"],
            inputs=[
                part_inputs("stages", part, "s", "The stages of the world."),
                io.String.Input("world_id", default="world", tooltip="The id of the world, also the name of its folder."),
                io.String.Input("description", default="", multiline=True, tooltip="A description of the world."),
                io.String.Input(
                    "initial_world",
                    default="",
                    multiline=True,
                    tooltip="The first content as YAML, such as 'initial_story: Two lands ...'.",
                ),
                io.Int.Input(
                    "world_seed",
                    default=-1,
                    min=-1,
                    max=2**63 - 1,
                    tooltip="The seed of the world. -1: a new seed for every run.",
                ),
                io.String.Input(
                    "cycle",
                    default="",
                    tooltip="The stages in the order of the ring, separated by commas. Blank: the canonical order.",
                    advanced=True,
                ),
                io.String.Input(
                    "fields", default="", multiline=True, tooltip="Extra fields of the state, one 'name: type' per line.", advanced=True
                ),
                names_input("stages"),
            ],
            outputs=[WORLD.Output(display_name="world", tooltip="The config of the world.")],
        )

    @classmethod
    def execute(
        cls,
        stages: dict[str, Any],
        world_id: str,
        description: str,
        initial_world: str,
        world_seed: int,
        cycle: str,
        fields: str,
        names: str,
    ) -> Any:
        """Return the config of the world."""
        from yggdrasill.server_ext.comfy.levels.world_composing import make_world

        facts = {"description": description, "initial_world": initial_world, "fields": fields, "cycle": cycle, "names": names}
        return io.NodeOutput(make_world(world_id, linked_parts(stages), seed=world_seed, **facts))
