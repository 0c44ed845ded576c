"""Validation results in ComfyUI's form, and errors that do not apply to remote nodes."""

from __future__ import annotations

from typing import Any

from yggdrasill.errors import InvalidConfig
from yggdrasill.server_ext.comfy.placement.validation_result import ValidationResult, drop_file_errors, error_result, explains_errors

PROMPT = {
    "2": {"class_type": "X", "inputs": {}},
    "3": {"class_type": "X", "inputs": {}},
    "7": {"class_type": "Show", "inputs": {}},
    "8": {"class_type": "Show", "inputs": {"value": ["2", 0]}},
    "9": {"class_type": "Show", "inputs": {"a": ["2", 0], "b": ["3", 0]}},
}


def errors(*kinds: str, outputs: tuple[str, ...] = ("9",)) -> dict[str, Any]:
    return {"errors": [{"type": kind} for kind in kinds], "dependent_outputs": list(outputs), "class_type": "X"}


def test_a_missing_list_value_of_a_remote_node_is_not_an_error() -> None:
    answer: ValidationResult = False, {"type": "prompt_outputs_failed_validation"}, [], {"2": errors("value_not_in_list")}
    assert drop_file_errors(answer, frozenset({"2"}), PROMPT) == ((True, None, ["9"], {}), ["9"])
    assert drop_file_errors(answer, frozenset({"3"}), PROMPT) == (answer, [])


def test_an_output_that_depends_on_another_error_does_not_run() -> None:
    by_node = {"2": errors("value_not_in_list", outputs=("8", "9")), "3": errors("required_input_missing", outputs=("9",))}
    assert drop_file_errors((False, {"type": "x"}, ["7"], by_node), frozenset({"2", "3"}), PROMPT) == (
        (True, None, ["7", "8"], {"3": by_node["3"]}),
        ["7", "8"],
    )


def test_an_output_without_a_link_to_another_error_runs_although_comfyui_names_it_there() -> None:
    # ComfyUI validated 9 first, whose errors it then names again with those of 8
    by_node = {"2": errors("value_not_in_list", outputs=("8",)), "3": errors("value_not_in_list", outputs=("9", "8"))}
    result, runnable = drop_file_errors((False, {"type": "x"}, [], by_node), frozenset({"2"}), PROMPT)
    assert result == (True, None, ["8"], {"3": by_node["3"]})
    assert runnable == ["8"]


def test_an_error_of_ours_has_comfyuis_form() -> None:
    good, error, outputs, by_node = error_result(InvalidConfig("no way"), {"2": {"class_type": "Blur"}}, ["2"])
    assert (good, outputs) == (False, [])
    assert error is not None
    assert error.keys() == {"type", "message", "details", "extra_info"}
    assert by_node["2"]["class_type"] == "Blur"
    assert by_node["2"]["errors"][0]["details"] == "no way"


def test_a_choice_that_only_the_endpoint_has_explains_an_error() -> None:
    listed = {"type": "value_not_in_list", "extra_info": {"input_name": "ckpt_name"}}
    custom = {"type": "custom_validation_failed", "extra_info": {"input_name": "other"}}
    assert explains_errors([listed, custom], {"ckpt_name"})
    assert not explains_errors([listed], {"vae_name"})
    assert not explains_errors([custom], set())
