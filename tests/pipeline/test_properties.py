"""What holds for any pipeline: saving changes nothing, and neither does running branches at the same time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samples.graphs import GraphCase, graph_cases, sample_registry
from samples.projects import REGISTRY, pipeline_configs, pipeline_inputs
from samples.worlds import bits
from yggdrasill.foundation import ReusePool
from yggdrasill.pipeline import Pipeline

few = settings(max_examples=25, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def no_grad() -> Any:
    with torch.no_grad():
        yield


def build(config: dict[str, Any], pool: ReusePool | None = None) -> Pipeline:
    return Pipeline.from_config(config, REGISTRY, pool=pool or ReusePool())


@few
@given(config=pipeline_configs())
def test_the_config_is_the_whole_structure(config: dict[str, Any]) -> None:
    assert build(config).to_config() == config


@few
@given(config=pipeline_configs(), seed=st.integers(0, 9), archive=st.booleans(), backend=st.sampled_from(["json", "safetensors"]))
def test_a_loaded_pipeline_goes_on_bit_for_bit(config: dict[str, Any], seed: int, archive: bool, backend: str) -> None:
    pipeline, inputs = build(config), pipeline_inputs(config)
    pipeline.run(inputs, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("p.zip" if archive else "p")
        pipeline.save(path, format="archive" if archive else "dir", backend=backend)
        loaded = Pipeline.load(path, registry=REGISTRY, pool=ReusePool())

    assert bits(loaded.run(inputs, seed=seed)) == bits(pipeline.run(inputs, seed=seed))
    assert bits(loaded.state_dict()) == bits(pipeline.state_dict())


@few
@given(config=pipeline_configs(), workers=st.integers(2, 4))
def test_branches_at_the_same_time_give_the_same_bits(config: dict[str, Any], workers: int) -> None:
    inputs = pipeline_inputs(config)
    assert bits(build(config).run(inputs, seed=1, max_workers=workers)) == bits(build(config).run(inputs, seed=1))


@few
@given(config=pipeline_configs(kinds=("linear", "add", "noisy", "loop")))
def test_sharing_changes_no_result(config: dict[str, Any]) -> None:
    inputs = pipeline_inputs(config)
    assert bits(build(config).run(inputs, seed=1)) == bits(build(config, ReusePool.off()).run(inputs, seed=1))


@few
@given(case=graph_cases(max_nodes=5))
def test_a_graph_runs_in_a_pipeline_as_it_runs_under_that_path(case: GraphCase) -> None:
    from yggdrasill.executor import enter_run

    pipeline = Pipeline()
    pipeline.add_graph(case.config, "case", registry=sample_registry(), pool=ReusePool())
    pipeline.infer_exposed_ports()
    inputs = {f"case:{name}": value for name, value in case.inputs.items()}
    with enter_run(seed=4, path=()) as context:
        context.node = "case"
        alone = case.build().run(case.inputs, num_loop_steps=case.steps)

    together = pipeline.run(inputs, num_loop_steps=case.steps, seed=4)

    assert bits({name.partition(":")[2]: value for name, value in together.items()}) == bits(alone)
