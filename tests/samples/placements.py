"""Hypothesis strategies that place the parts of a project locally, on an endpoint, or on one of several."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from samples.projects import SHARED, graph_of_kind
from samples.worlds import canonical_config
from yggdrasill.remote import EndpointRegistry
from yggdrasill.remote.placement import Placement, ProjectPart

__all__ = ["Layout", "deployable", "extended_world_configs", "layouts"]

#: Graphs of these kinds may stand behind the graph of that name in the canonical world: they take and give what it gives.
_SPLICES = {"create": ("double", "loop", "noisy", "accumulate"), "describe": ("double",), "narrate": ("double",), "develop": ("double",)}


@dataclass(frozen=True)
class Layout:
    """The content of an endpoints.yaml: placements by key, and the rest."""

    graphs: dict[str, Any]
    default: str

    def into(self, registry: EndpointRegistry) -> EndpointRegistry:
        """Return the registry with these placements in place of its own; its connections stay open."""
        registry.placements = {key: Placement.of(value, registry.endpoints, key) for key, value in self.graphs.items()}
        registry.default = Placement.of(self.default, registry.endpoints, "default")
        return registry

    @property
    def has_replicas(self) -> bool:
        """Whether a part may run on several endpoints."""
        return any(isinstance(value, dict) for value in self.graphs.values())


@st.composite
def layouts(draw: st.DrawFn, config: Mapping[str, Any], endpoints: Sequence[str], root_id: str | None = None) -> Layout:
    """Draw a placement of a project's parts at every level, with at least one remote part; with ``root_id`` also of the whole project."""
    places = st.sampled_from(["local", *endpoints, *endpoints, *_replicas(endpoints)])
    parts = [part.name for part in ProjectPart.of_config((), config).walk() if part.path]
    share = draw(st.sampled_from([1, 2, 4]))
    graphs = {name: draw(places) for name in parts if draw(st.integers(1, 4)) <= share}
    if root_id is not None and root_id not in parts and draw(st.integers(1, 5)) == 1:
        graphs[root_id] = draw(places)
    if all(value == "local" for value in graphs.values()):
        return Layout({}, draw(st.sampled_from(endpoints)))
    return Layout(graphs, draw(st.sampled_from(["local", *endpoints])))


def _replicas(endpoints: Sequence[str]) -> Iterator[dict[str, Any]]:
    for policy in ("least_busy", "first", "round_robin"):
        for first in endpoints:
            yield {"replicas": [first, *(name for name in endpoints if name != first)], "policy": policy}


@st.composite
def extended_world_configs(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the canonical sample world with further graphs after some of its own."""
    config = canonical_config(seed=draw(st.integers(0, 99)))
    for stage in config["stages"].values():
        for entry in stage["pipelines"]:
            name = entry["stage_node_id"]
            for number in range(draw(st.integers(0, 2)) if name in _SPLICES else 0):
                _splice(entry["pipeline_config"], draw(st.sampled_from(_SPLICES[name])), f"extra{number}")
    return config


def _splice(pipeline: dict[str, Any], kind: str, graph_id: str) -> None:
    """Append a graph to the one with the pipeline's output."""
    graph = graph_of_kind(kind, graph_id).to_config()
    _shape_noise(graph, [3])
    (output,) = pipeline["exposed_outputs"]
    pipeline["graphs"].append({"pipeline_node_id": graph_id, "graph_config": graph, "trainable": True})
    pipeline["edges"].append(
        {"source_node": output["pipeline_node_id"], "source_port": output["port_name"], "target_node": graph_id, "target_port": "x"}
    )
    pipeline["exposed_outputs"] = [{"pipeline_node_id": graph_id, "port_name": "y", "name": output["name"]}]


def deployable(config: Mapping[str, Any], model: Path, rows: int | None = None) -> dict[str, Any]:
    """Return a project of `samples.projects` that can be deployed: its shared model is the file ``model``, which endpoints may read.

    With ``rows`` its noise has the shape [rows, 4] instead of [4], so that tensors are sent as artifacts.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    for block_config in _block_configs(changed):
        if block_config.get("checkpoint_ref") == SHARED:
            block_config["checkpoint_ref"] = str(model)
    if rows is not None:
        _shape_noise(changed, [rows, 4])
    return changed


def _shape_noise(config: dict[str, Any], shape: list[int]) -> None:
    for node in _nodes(config):
        if node["block_type"] == "sample/noise":
            node["config"]["shape"] = shape


def _block_configs(config: Any) -> Iterator[dict[str, Any]]:
    return (node["config"] for node in _nodes(config))


def _nodes(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the nodes of all graphs in a config of any level."""
    if isinstance(config, dict):
        if "block_type" in config:
            yield config
        else:
            for value in config.values():
                yield from _nodes(value)
    elif isinstance(config, list):
        for value in config:
            yield from _nodes(value)
