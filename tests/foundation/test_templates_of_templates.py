"""A template made of others: ``from_template`` is replaced by that template's config, wherever it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yggdrasill.errors import InvalidConfig, UnknownName
from yggdrasill.foundation import templates
from yggdrasill.foundation.templates import FileTemplate, register_template, render_template

INNER = """
parameters:
  word: {default: none}
config:
  says: "{{word}}"
"""


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of templates in place of the shipped ones."""
    monkeypatch.setattr(templates, "TEMPLATE_FOLDER", tmp_path)
    monkeypatch.setattr(templates, "_registered", {})
    for level in ("graph", "stage"):
        (tmp_path / level).mkdir()
    (tmp_path / "graph" / "inner.yaml").write_text(INNER, encoding="utf-8")
    return tmp_path


def outer(shipped: Path, text: str, **parameters: Any) -> dict[str, Any]:
    (shipped / "stage" / "outer.yaml").write_text(text, encoding="utf-8")
    return render_template("stage", "outer", parameters)


def test_a_part_becomes_the_config_of_the_template_it_names(shipped: Path) -> None:
    assert outer(shipped, "config: {parts: [{from_template: graph/inner}]}") == {"parts": [{"says": "none"}]}


def test_parameters_are_handed_on_filled(shipped: Path) -> None:
    text = 'parameters: {name: {default: you}}\nconfig: {part: {from_template: graph/inner, parameters: {word: "hello {{name}}"}}}'
    assert outer(shipped, text) == {"part": {"says": "hello you"}}
    assert outer(shipped, text, name="world") == {"part": {"says": "hello world"}}


def test_a_mapping_of_parameters_can_be_handed_on_whole(shipped: Path) -> None:
    text = 'parameters: {graph: {default: {}}}\nconfig: {part: {from_template: graph/inner, parameters: "{{graph}}"}}'
    assert outer(shipped, text, graph={"word": 3}) == {"part": {"says": 3}}


def test_a_whole_config_can_be_another_template(shipped: Path) -> None:
    assert outer(shipped, "config: {from_template: graph/inner, parameters: {word: all}}") == {"says": "all"}


def test_a_choice_may_name_a_template(shipped: Path) -> None:
    text = """
parameters: {kind: {default: plain, choices: {plain: {says: nothing}, made: {from_template: graph/inner}}}}
config: {part: "{{kind}}"}
"""
    assert outer(shipped, text) == {"part": {"says": "nothing"}}
    assert outer(shipped, text, kind="made") == {"part": {"says": "none"}}


def test_a_registered_template_can_be_a_part(shipped: Path) -> None:
    register_template("graph", "built", lambda **parameters: {"built": parameters})
    assert outer(shipped, "config: {part: {from_template: graph/built, parameters: {a: 1}}}") == {"part": {"built": {"a": 1}}}


def test_a_value_that_a_caller_passes_is_not_looked_into(shipped: Path) -> None:
    given = {"from_template": "graph/inner"}
    assert outer(shipped, 'parameters: {value: {}}\nconfig: {part: "{{value}}"}', value=given) == {"part": given}


def test_a_mapping_with_other_keys_is_no_part(shipped: Path) -> None:
    config = {"from_template": "graph/inner", "note": "kept"}
    assert outer(shipped, "config: {part: {from_template: graph/inner, note: kept}}") == {"part": config}


@pytest.mark.parametrize("place", ["inner", "nowhere/inner", "graph/", "3", "null"])
def test_a_part_is_named_by_level_and_name(shipped: Path, place: str) -> None:
    with pytest.raises(InvalidConfig, match=r"from_template is .* write it level/name"):
        outer(shipped, f"config: {{part: {{from_template: {place}}}}}")


def test_an_unknown_template_or_parameter_of_a_part_is_named(shipped: Path) -> None:
    with pytest.raises(UnknownName, match="inner"):
        outer(shipped, "config: {part: {from_template: graph/iner}}")
    with pytest.raises(UnknownName, match="word"):
        outer(shipped, "config: {part: {from_template: graph/inner, parameters: {wort: 1}}}")


def test_parameters_of_a_part_are_a_mapping(shipped: Path) -> None:
    with pytest.raises(InvalidConfig, match="parameters of 'graph/inner' are 'all'"):
        outer(shipped, "config: {part: {from_template: graph/inner, parameters: all}}")


def test_a_template_that_contains_itself_is_named_by_its_ring(shipped: Path) -> None:
    (shipped / "graph" / "back.yaml").write_text("config: {again: {from_template: stage/outer}}", encoding="utf-8")
    with pytest.raises(InvalidConfig, match="stage/outer -> graph/back -> stage/outer"):
        outer(shipped, "config: {part: {from_template: graph/back}}")


def test_a_file_anywhere_can_use_the_shipped_templates(shipped: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("config: {part: {from_template: graph/inner}}", encoding="utf-8")
    assert FileTemplate(file)() == {"part": {"says": "none"}}
