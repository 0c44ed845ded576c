"""A ComfyUI workflow as a graph: an API prompt whose Graph Input and Graph Output nodes are its ports. A ComfyUI host runs it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from yggdrasill.errors import InvalidArgument, InvalidConfig, MissingInput, unknown_name
from yggdrasill.executor.context import RunContext, enter_run
from yggdrasill.executor.hooks import Callbacks, as_emit
from yggdrasill.foundation.contract import Resolver
from yggdrasill.remote.comfy_ports import HIDDEN_NODE, INPUT_NODE, OUTPUT_NODE, check_prompt, ports_of
from yggdrasill.remote.remote_graph import refuse_training
from yggdrasill.values.handles import load_handles

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ComfyGraph", "PromptRunner", "can_run_prompts", "run_prompts_with"]


class PromptRunner(Protocol):
    """Runs the prompts of this process through ComfyUI's queue."""

    def run_prompt(
        self, graph: ComfyGraph, inputs: Mapping[str, Any], context: RunContext, preview_method: str | None = None
    ) -> dict[str, Any]:
        """Return the outputs by port name; values may be handles. Blocks; must not be called on ComfyUI's thread."""
        ...

    def changing(self, node_types: Sequence[str]) -> list[str]:
        """Return the classes whose nodes may have to run again although their inputs are equal; unknown classes are included."""
        ...


class ComfyGraph:
    """The workflow ``prompt`` (ComfyUI's API format) under the name ``graph_id``.

    Its inputs are its Graph Input nodes by name, optional if one has a default; its outputs are its Graph Output nodes. It runs only in
    a ComfyUI with this extension; in other processes it describes itself and can be placed on such an endpoint.

    Raises:
        InvalidConfig: not an API prompt, ports without names, or two outputs with one name.
    """

    #: Inputs may be handles; they are loaded only if ComfyUI has no cached result for them.
    accepts_handles = True
    #: The behaviour of custom nodes is unknown.
    deterministic = False
    stateful = False

    def __init__(self, prompt: Mapping[str, Any], graph_id: str = "graph") -> None:
        if not isinstance(graph_id, str) or not graph_id.strip():
            raise InvalidConfig(f"graph_id must be a non-empty text, got {graph_id!r}")
        self.graph_id = graph_id
        self.prompt = check_prompt(prompt, graph_id)
        self.inputs = ports_of(self.prompt, INPUT_NODE, graph_id)
        self.outputs = ports_of(self.prompt, OUTPUT_NODE, graph_id)

    def __repr__(self) -> str:
        return f"<ComfyGraph {self.graph_id!r}: {len(self.prompt)} nodes, inputs {list(self.inputs)}, outputs {list(self.outputs)}>"

    @property
    def id(self) -> str:
        """Return the graph id."""
        return self.graph_id

    @property
    def node_types(self) -> list[str]:
        """Return the classes of its nodes, each once, sorted."""
        return sorted({node["class_type"] for node in self.prompt.values()} - {HIDDEN_NODE})

    @property
    def changing_types(self) -> list[str]:
        """Return the classes whose nodes declare that equal inputs may give other outputs; all classes if this process has no ComfyUI."""
        return self.node_types if _runner is None else _runner.changing(self.node_types)

    # -- contract -----------------------------------------------------------------------------------------------

    def get_input_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """Return the inputs by name; with ``include_dtype`` also dtype, ComfyUI's type and optional."""
        return [port.spec(include_dtype) for port in self.inputs.values()]

    def get_output_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """Return the outputs, as `get_input_spec`."""
        return [port.spec(include_dtype) for port in self.outputs.values()]

    def to_config(self) -> dict[str, Any]:
        """Return ``{"kind": "comfy", "graph_id", "prompt"}``, the inverse of `from_config`."""
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
        """Build the graph. The other arguments are common to all levels and have no effect.

        Raises:
            InvalidConfig
        """
        unknown = sorted(set(map(str, config)) - {"kind", "schema_version", "graph_id", "prompt", "metadata"})
        if config.get("kind") != "comfy" or "prompt" not in config or unknown:
            raise InvalidConfig(
                f"the config of a ComfyUI workflow must be {{kind: comfy, graph_id, prompt}}, got the keys {sorted(map(str, config))}"
            )
        return cls(config["prompt"], config.get("graph_id", "graph"))

    # -- as every graph -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: the weights are files of the ComfyUI host."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Accept an empty state.

        Raises:
            InvalidArgument: ``strict`` and the state is not empty.
        """
        if strict and state:
            raise InvalidArgument(f"{self!r} has no state, got {sorted(state)}")

    def to(self, device: Any) -> Self:
        """Do nothing: ComfyUI chooses the devices."""
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
        """Run the workflow through ComfyUI's queue and return the outputs by name; blocked ports are omitted.

        A port's value is the value of its link; several values, as in ComfyUI's lists, are a `PortList`. ``preview_method`` is ComfyUI's:
        ``auto``, ``latent2rgb``, ``taesd``, ``none``, or ``default`` (as ComfyUI was started).

        Raises:
            UnknownName (an undeclared input), MissingInput, InvalidStructure (ComfyUI refuses the prompt; ``details["node_errors"]``),
            BlockFailed (``details["node_id"]``), Cancelled; InvalidArgument: this process is not a ComfyUI.
        """
        refuse_training(training, self)
        values = dict(inputs or {})
        self._check(values)
        if dry_run:
            return dict.fromkeys(self.outputs)
        emit = as_emit(callbacks)
        runner = self._runner()
        with enter_run(seed=seed) as context:
            if emit:
                emit(self.graph_id, "before", inputs=values)
            context.check_cancelled()
            with context.host.release_slot():
                outputs = runner.run_prompt(self, values, context, preview_method)
            if context.outermost:
                outputs = {name: load_handles(value) for name, value in outputs.items()}
            if emit:
                emit(self.graph_id, "after", outputs=outputs)
        return outputs

    def _check(self, values: Mapping[str, Any]) -> None:
        for name in values:
            if name not in self.inputs:
                raise unknown_name("input", name, self.inputs, f"These are the inputs of workflow {self.graph_id!r}.")
        missing = [name for name, port in self.inputs.items() if not port.optional and name not in values]
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
                f"put 'graphs: {{{self.graph_id}: ENDPOINT}}' into endpoints.yaml, or use RemoteGraph(url, {self.graph_id!r}) if it is deployed"
            )
        return _runner


_runner: PromptRunner | None = None


def can_run_prompts() -> bool:
    """Return whether this process is a ComfyUI whose queue can run every `ComfyGraph`."""
    return _runner is not None


def run_prompts_with(runner: PromptRunner | None) -> None:
    """Set the runner of every `ComfyGraph` of this process; None removes it."""
    global _runner  # noqa: PLW0603 - a process has one ComfyUI or none
    _runner = runner
