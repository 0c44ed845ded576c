"""Every shipped template loads, is valid all the way down, runs, draws, and comes back from its config and its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from yggdrasill.draw import draw_config
from yggdrasill.errors import InvalidArgument, UnknownName
from yggdrasill.foundation import Graph
from yggdrasill.foundation.templates import TEMPLATE_FOLDER, FileTemplate, render_template, template_names
from yggdrasill.pipeline import Pipeline
from yggdrasill.stage import Stage, State
from yggdrasill.values import dumps
from yggdrasill.world import World

LEVELS: dict[str, Any] = {"graph": Graph, "pipeline": Pipeline, "stage": Stage, "world": World}
SHIPPED = [(level, name) for level in LEVELS for name in template_names(level)]

by_template = pytest.mark.parametrize("level, name", SHIPPED, ids=[f"{level}/{name}" for level, name in SHIPPED])

CANON = {
    "graph": {"text_to_image", "upscale", "image_to_video"},
    "pipeline": {"text_to_video", "generate_and_upscale"},
    "stage": {"creator_stage", "author_stage", "environment_stage"},
    "world": {"canon_2.0", "storytelling", "art_generation"},
}
NESTED: dict[str, dict[str, bool]] = {
    "graph": {},
    "pipeline": {"validate_graphs": True},
    "stage": {"validate_pipelines": True},
    "world": {"validate_stages": True},
}
SMALL = {"world": {"size": 64}}
#: The state each stage is given, what it is asked to write, and what it leaves.
STAGES = {
    "philosopher_stage": ([1, 2, 3], [1, 2, 3, 4]),
    "author_stage": ([1, 2, 3, 4], [1, 2, 3, 4, 5]),
    "environment_stage": ([1, 2, 3, 4, 5], [1]),
    "architect_stage": ([1], [1, 2]),
    "creator_stage": ([1, 2], [1, 2, 3]),
}


def build(level: str, name: str) -> Any:
    return LEVELS[level].from_template(name, **SMALL.get(level, {}))


def test_the_names_of_the_canon_are_shipped() -> None:
    assert {(level, name) for level, names in CANON.items() for name in names} <= set(SHIPPED)


def test_a_name_belongs_to_one_level() -> None:
    names = [name for _, name in SHIPPED]
    assert len(names) == len(set(names))


@by_template
def test_it_is_valid_all_the_way_down_without_a_warning(level: str, name: str) -> None:
    found = build(level, name).validate(strict=True, **NESTED[level])
    assert (found.errors, found.warnings) == ([], [])


@by_template
def test_its_id_is_a_parameter_and_every_parameter_is_described(level: str, name: str) -> None:
    template = FileTemplate(TEMPLATE_FOLDER / level / f"{name}.yaml")
    assert LEVELS[level].from_template(name, **{f"{level}_id": "renamed"}).id == "renamed"
    assert template.description
    assert [key for key, parameter in template.parameters.items() if not parameter.description] == []


@by_template
def test_it_comes_back_from_its_config_and_its_folder(level: str, name: str, tmp_path: Path) -> None:
    project = build(level, name)
    config = project.to_config()
    project.save(tmp_path / "saved")
    assert LEVELS[level].from_config(config, validate=True).to_config() == config
    assert LEVELS[level].load(tmp_path / "saved").to_config() == config


@by_template
def test_it_draws(level: str, name: str) -> None:
    picture = draw_config(render_template(level, name, {}))
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert build(level, name).id in picture


@pytest.mark.parametrize("level, name", [pair for pair in SHIPPED if pair[0] in ("graph", "pipeline")], ids=lambda part: part)
def test_a_graph_or_pipeline_runs_alone_and_gives_all_its_outputs(level: str, name: str, values: dict[str, Any]) -> None:
    project = build(level, name)
    wanted = {entry["name"] for entry in project.get_input_spec()}
    inputs = {key: values[key] for key in wanted}
    if name == "reader":
        inputs["artifacts"] = values["measures"]
    before = dumps(inputs)
    outputs = project.run(inputs, seed=1)
    assert set(outputs) == {entry["name"] for entry in project.get_output_spec()}
    assert all(value is not None for value in outputs.values())
    assert dumps(inputs) == before


@pytest.mark.parametrize("name", [name for level, name in SHIPPED if level == "stage"])
def test_a_stage_runs_alone(name: str, full: State) -> None:
    given, left = STAGES[name]
    stage = build("stage", name)
    state = full.only(given)
    assert stage.should_run(state)
    assert stage.run(state, seed=1).filled_blocks == left


@pytest.mark.parametrize("name", [name for level, name in SHIPPED if level == "world"])
def test_a_world_runs(name: str) -> None:
    states = list(build("world", name).run(num_steps=3, iterate=True))
    assert [state.filled_blocks for state in states] == [[1, 2, 3]] * 3
    accounts = [entry["account"]["text"] for entry in states[-1].content["chronicle"]]
    assert len(set(accounts)) == 2


def test_a_painting_is_one_sheet_of_four_and_a_survey_is_plain_values() -> None:
    sheet = build("world", "art_generation").run()[3]["images"][0]
    assert tuple(sheet.shape) == (1, 2 * 64 + 30, 2 * 64 + 30, 3)
    quarters = [sheet[:, top : top + 64, left : left + 64] for top in (10, 84) for left in (10, 84)]
    assert all(not torch.equal(a, b) for number, a in enumerate(quarters) for b in quarters[:number])
    survey = build("world", "storytelling").run()[3]
    assert survey["land_share"] > 0
    assert not any(isinstance(value, torch.Tensor) for value in survey.values())


def test_a_value_that_is_no_choice_and_an_unknown_parameter_are_named() -> None:
    with pytest.raises(InvalidArgument, match=r"'artifacts' is 'opera'.*map.*painting.*survey"):
        LEVELS["world"].from_template("canon_2.0", artifacts="opera")
    with pytest.raises(UnknownName, match="backbone_type"):
        LEVELS["graph"].from_template("text_to_image", bakbone_type="backbone/identity")


def test_the_template_that_the_page_shows_works(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "templates.md").read_text(encoding="utf-8")
    file = tmp_path / "map.yaml"
    file.write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    pipeline = Pipeline.from_config(FileTemplate(file)(size=64, artifacts="painting"), validate=True)
    assert pipeline.id == "map_64"
    assert pipeline.run({"text": "An island with one mountain."}, seed=1)["artifacts"]["images"][0].shape[1] == 2 * 64 + 30


def test_the_page_names_every_shipped_template() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "templates.md").read_text(encoding="utf-8")
    assert [name for _, name in SHIPPED if f"| `{name}` |" not in page] == []
