"""Stage, Run Stage and World from Stages: a world put together on the canvas."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.sockets import linked_parts, names_input, part_inputs
from yggdrasill.nodes.types import GRAPH, PIPELINE, STAGE, STATE, WORLD, category, own_seed_input

__all__ = ["RunStage", "StageNode", "WorldFromStages"]

_CONDITION = (
    "When it runs: blank is always; a preset (philosopher, author, world_update); or blocks that must be filled, such as '1, 2', while those it "
    "writes are empty."
)


class StageNode(io.ComfyNode):
    """Pipelines and a state contract."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        from yggdrasill.stage.stage import ROLES

        part = io.MultiType.Input("pipeline", [PIPELINE, GRAPH], optional=True, tooltip="A pipeline of the stage, or a single graph.")
        return io.Schema(
            node_id="YggdrasillStage",
            display_name="Stage",
            category=category("World"),
            description="Pipelines that read blocks of a world's state and write others.",
            search_aliases=["yggdrasill", "state contract", "philosopher", "author", "environment", "architect", "creator"],
            inputs=[
                part_inputs("pipelines", part, "p", "The pipelines, in their order."),
                io.String.Input("stage_id", default="stage", tooltip="The id of the stage; the registry places it whole by it."),
                io.Combo.Input(
                    "role", options=["none", *ROLES], default="none", tooltip="Which of the five stages of the canonical ring this is."
                ),
                io.String.Input(
                    "connections",
                    default="",
                    multiline=True,
                    placeholder="2 -> creator.configuration\ncreator.artifacts -> 3",
                    tooltip="One in a line: '2 -> a.in' gives block 2 of the state to a pipeline, 'a.out -> 3' writes block 3, 'a.out -> b.in' "
                    "links two pipelines. Besides 1 to 5 there are fields by name, and to read: action and content.",
                ),
                io.String.Input("condition", default="", tooltip=_CONDITION),
                io.String.Input(
                    "reads", default="", tooltip="The blocks read, such as '1, 2'; blank: those in the connections.", advanced=True
                ),
                io.String.Input("writes", default="", tooltip="The blocks written; blank: those in the connections.", advanced=True),
                io.String.Input(
                    "conditions",
                    default="",
                    multiline=True,
                    tooltip="Conditions of single pipelines, 'name: condition' in a line.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "carry", default=True, tooltip="Blocks that nothing writes stay; off: only written ones are left.", advanced=True
                ),
                names_input("pipelines"),
            ],
            outputs=[STAGE.Output(display_name="stage", tooltip="The stage's config.")],
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
        """Give the stage's config."""
        from yggdrasill.server_ext.comfy.levels.world_composing import make_stage

        settings: dict[str, Any] = {"reads": reads, "writes": writes, "condition": condition, "conditions": conditions, "carry": carry}
        return io.NodeOutput(make_stage(stage_id, role, linked_parts(pipelines), names=names, lines=connections, **settings))


class RunStage(io.ComfyNode):
    """Runs a stage once."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        return io.Schema(
            node_id="YggdrasillRunStage",
            display_name="Run Stage",
            category=category("World"),
            description="Runs a stage on a state if its condition holds; else the state goes through.",
            search_aliases=["yggdrasill", "execute stage"],
            inputs=[
                STAGE.Input("stage", tooltip="The stage that runs."),
                STATE.Input("state", optional=True, tooltip="The state it reads; without one an empty one."),
                io.String.Input(
                    "action", default="", multiline=True, tooltip="What somebody does in the world, for ports that take an action."
                ),
                own_seed_input(),
            ],
            outputs=[STATE.Output(display_name="state", tooltip="The state with what the stage wrote.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    async def execute(cls, stage: dict[str, Any], action: str, seed: int, state: Any = None) -> Any:
        """Give the new state."""
        from yggdrasill.server_ext.comfy.levels.node_work import NodeWork
        from yggdrasill.server_ext.comfy.levels.world_run import run_stage

        own = None if seed < 0 else seed
        after = await NodeWork(str(cls.hidden.unique_id), lambda work: run_stage(work, stage, state, action, own), seed=own).result()
        return io.NodeOutput(after.to_dict())


class WorldFromStages(io.ComfyNode):
    """A ring of stages."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        part = STAGE.Input("stage", optional=True, tooltip="A stage of the world.")
        return io.Schema(
            node_id="YggdrasillWorldFromStages",
            display_name="World from Stages",
            category=category("World"),
            description="Puts stages into a ring. With one stage of each role the ring is the canonical one.",
            search_aliases=["yggdrasill", "compose world", "ring", "cycle"],
            inputs=[
                part_inputs("stages", part, "s", "The stages of the world."),
                io.String.Input("world_id", default="world", tooltip="The id of the world; its folder is called so."),
                io.String.Input("description", default="", multiline=True, tooltip="What the world is."),
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
                    tooltip="What chance in the world starts from; -1: another in every run.",
                ),
                io.String.Input(
                    "cycle", default="", tooltip="Stages in the ring's order, divided by commas; blank: canonical.", advanced=True
                ),
                io.String.Input(
                    "fields", default="", multiline=True, tooltip="Extra fields of the state, 'name: type' in a line.", advanced=True
                ),
                names_input("stages"),
            ],
            outputs=[WORLD.Output(display_name="world", tooltip="The world's config.")],
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
        """Give the world's config."""
        from yggdrasill.server_ext.comfy.levels.world_composing import make_world

        facts = {"description": description, "initial_world": initial_world, "fields": fields, "cycle": cycle, "names": names}
        return io.NodeOutput(make_world(world_id, linked_parts(stages), seed=world_seed, **facts))
