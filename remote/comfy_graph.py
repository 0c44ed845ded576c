"""A ComfyUI workflow as a graph: an API prompt whose Graph Input and Graph Output nodes are its ports. A ComfyUI host runs it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from yggdrasill.errors import InvalidArgument, InvalidConfig, MissingInput, unknown_name
from yggdrasill.executor.context import RunContext, enter_run
from yggdrasill.executor.hooks import Callbacks, as_emit
from yggdrasill.foundation.contract import Resolver
from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE, check_prompt, ports_of
from yggdrasill.remote.remote_part import refuse_training
from yggdrasill.values.handles import load_handles

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ComfyGraph", "PromptRunner", "can_run_prompts", "run_prompts_with"]


class PromptRunner(Protocol):
    """Runs the prompts of this process: ComfyUI's own queue."""

    def run_prompt(
        self, graph: ComfyGraph, inputs: Mapping[str, Any], context: RunContext, preview_method: str | None = None
    ) -> dict[str, Any]:
        """The outputs by port name; values may be handles. Blocks, in a thread that is not ComfyUI's."""
        ...

    def changing(self, node_types: Sequence[str]) -> list[str]:
        """The classes whose nodes may have to run again though their inputs are the same, unknown ones among them."""
        ...


class ComfyGraph:
    """The workflow ``prompt`` (ComfyUI's API format) under the name ``graph_id``.

    Its inputs are the names of its Graph Input nodes, optional where one has a default; its outputs those of its Graph Output
    nodes. It runs in a ComfyUI that has this extension; elsewhere it describes itself, and is placed on such an endpoint.

    Raises:
        InvalidConfig: no API prompt, or ports without names, or two outputs of one name.
    """

    #: Inputs may be handles; they are loaded only if ComfyUI has not computed with them before.
    accepts_handles = True
    #: What custom nodes do is not known here.
    deterministic = False
    stateful = False

    def __init__(self, prompt: Mapping[str, Any], graph_id: str = "graph") -> None:
        if not isinstance(graph_id, str) or not graph_id.strip():
            raise InvalidConfig(f"a graph_id is a non-empty text, got {graph_id!r}")
        self.graph_id = graph_id
        self.prompt = check_prompt(prompt, graph_id)
        self.inputs = ports_of(self.prompt, INPUT_NODE, graph_id)
        self.outputs = ports_of(self.prompt, OUTPUT_NODE, graph_id)

    def __repr__(self) -> str:
        return f"<ComfyGraph {self.graph_id!r}: {len(self.prompt)} nodes, inputs {list(self.inputs)}, outputs {list(self.outputs)}>"

    @property
    def id(self) -> str:
        """The graph id."""
        return self.graph_id

    @property
    def node_types(self) -> list[str]:
        """The classes of its nodes, each once, sorted."""
        return sorted({node["class_type"] for node in self.prompt.values()})

    @property
    def changing_types(self) -> list[str]:
        """The classes whose nodes may give something else for the same inputs, by their own word; all of them where there is no ComfyUI to ask."""
        return self.node_types if _runner is None else _runner.changing(self.node_types)

    # -- contract -----------------------------------------------------------------------------------------------

    def get_input_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """The inputs by name; with ``include_dtype`` also dtype, ComfyUI's own type and optional."""
        return [port.spec(include_dtype) for port in self.inputs.values()]

    def get_output_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """The outputs, as `get_input_spec`."""
        return [port.spec(include_dtype) for port in self.outputs.values()]

    def to_config(self) -> dict[str, Any]:
        """``{"kind": "comfy", "graph_id", "prompt"}``, `from_config`'s inverse."""
        return {"kind": "comfy", "graph_id": self.graph_id, "prompt": copy.deepcopy(self.prompt)}

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        registry: Any = None,
        validate: bool = False,
        *,
        pool: Any = None,
        base_dir: Any = None,
        endpoints: Resolver | None = None,
        allow_ref: bool = True,
    ) -> Self:
        """Build it; the other arguments are those of every level and mean nothing here.

        Raises:
            InvalidConfig
        """
        stray = sorted(set(map(str, config)) - {"kind", "schema_version", "graph_id", "prompt", "metadata"})
        if config.get("kind") != "comfy" or "prompt" not in config or stray:
            raise InvalidConfig(
                f"the config of a ComfyUI workflow is {{kind: comfy, graph_id, prompt}}; this one has {sorted(map(str, config))}"
            )
        return cls(config["prompt"], config.get("graph_id", "graph"))

    # -- as every graph -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Nothing: its weights are files of the ComfyUI host."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take the empty state.

        Raises:
            InvalidArgument: ``strict`` and there is more.
        """
        if strict and state:
            raise InvalidArgument(f"{self!r} has no state of its own and takes none of {sorted(state)}")

    def to(self, device: Any) -> Self:
        """Nothing: devices are ComfyUI's."""
        return self

    # -- running ------------------------------------------------------------------------------------------------

    def run(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        training: bool = False,
        device: Any = None,
        callbacks: Callbacks = None,
        dry_run: bool = False,
        seed: int | None = None,
        preview_method: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Run the workflow through ComfyUI's queue and return the outputs by name; a port that was blocked is left out.
        ``preview_method`` is ComfyUI's: ``auto``, ``latent2rgb``, ``taesd``, ``none``, or ``default``, as it was started.

        A port's value is what its link carries; several values, as ComfyUI's lists give them, are a `PortList`.

        Raises:
            UnknownName (an input nothing takes), MissingInput, InvalidStructure (ComfyUI refuses the prompt; ``details["node_errors"]``),
            BlockFailed (``details["node_id"]``), Cancelled; InvalidArgument: this process is no ComfyUI.
        """
        refuse_training(training, self)
        given = dict(inputs or {})
        self._check(given)
        if dry_run:
            return dict.fromkeys(self.outputs)
        emit = as_emit(callbacks)
        runner = self._runner()
        with enter_run(seed=seed) as context:
            if emit:
                emit(self.graph_id, "before", inputs=given)
            context.check_cancelled()
            with context.release_slot():
                outputs = runner.run_prompt(self, given, context, preview_method)
            if context.outermost:
                outputs = {name: load_handles(value) for name, value in outputs.items()}
            if emit:
                emit(self.graph_id, "after", outputs=outputs)
        return outputs

    def _check(self, given: Mapping[str, Any]) -> None:
        for name in given:
            if name not in self.inputs:
                raise unknown_name("input", name, self.inputs, f"These are the inputs of workflow {self.graph_id!r}.")
        missing = [name for name, port in self.inputs.items() if not port.optional and name not in given]
        if missing:
            raise MissingInput(
                f"workflow {self.graph_id!r} got no value for {', '.join(map(repr, missing))}; pass one, or give the Graph Input a default",
                node=self.inputs[missing[0]].nodes[0],
                ports=missing,
            )

    def _runner(self) -> PromptRunner:
        if _runner is None:
            raise InvalidArgument(
                f"{self.graph_id!r} is a ComfyUI workflow, which runs only inside a ComfyUI with this extension; place it on such an endpoint: "
                f"put 'graphs: {{{self.graph_id}: ENDPOINT}}' into endpoints.yaml, or use RemoteGraph(url, {self.graph_id!r}) where it is served"
            )
        return _runner


_runner: PromptRunner | None = None


def can_run_prompts() -> bool:
    """Whether this process is a ComfyUI whose queue runs every `ComfyGraph`."""
    return _runner is not None


def run_prompts_with(runner: PromptRunner | None) -> None:
    """Let ``runner`` run every `ComfyGraph` of this process; None takes it away."""
    global _runner  # noqa: PLW0603 - a process has one ComfyUI or none
    _runner = runner
