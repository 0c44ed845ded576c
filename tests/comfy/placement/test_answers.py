"""Answers in ComfyUI's form, and what of theirs does not count where a node runs elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from yggdrasill.errors import EndpointUnreachable, InvalidConfig
from yggdrasill.server_ext.comfy.placement.answers import Answer, excused, refusal, said_of, without_urls


def errors(*kinds: str, outputs: tuple[str, ...] = ("9",)) -> dict[str, Any]:
    return {"errors": [{"type": kind} for kind in kinds], "dependent_outputs": list(outputs), "class_type": "X"}


@pytest.mark.parametrize(
    "text, said",
    [
        (
            (
                "nothing answers at http://127.0.0.1:9/yggdrasill/v1/health (ClientConnectorError: Cannot connect to host 127.0.0.1:9 ssl:default "
                "[Connect call failed ('127.0.0.1', 9)]); start the endpoint or correct its url"
            ),
            "nothing answers at its url; start the endpoint or correct its url",
        ),
        ("the connection to https://forge.lan:8400 broke (ServerDisconnectedError)", "the connection to its url broke"),
        ("it needs a GPU (24 GB) and has none", "it needs a GPU (24 GB) and has none"),
    ],
)
def test_a_message_loses_its_addresses_and_nothing_else(text: str, said: str) -> None:
    assert without_urls(text) == said


def test_a_message_names_the_endpoint() -> None:
    assert said_of(EndpointUnreachable("it is silent", endpoint="forge")) == "endpoint 'forge': it is silent"
    assert said_of(EndpointUnreachable("endpoint 'forge' is silent", endpoint="forge")) == "endpoint 'forge' is silent"
    assert said_of(InvalidConfig("it is odd")) == "it is odd"


def test_what_is_not_in_a_list_here_may_be_where_the_node_runs() -> None:
    answer: Answer = False, {"type": "prompt_outputs_failed_validation"}, [], {"2": errors("value_not_in_list")}
    assert excused(answer, frozenset({"2"})) == ((True, None, ["9"], {}), ["9"])
    assert excused(answer, frozenset({"3"})) == (answer, [])


def test_an_output_that_hangs_on_another_error_does_not_run() -> None:
    by_node = {"2": errors("value_not_in_list", outputs=("8", "9")), "3": errors("required_input_missing", outputs=("9",))}
    assert excused((False, {"type": "x"}, ["7"], by_node), frozenset({"2", "3"})) == (
        (True, None, ["7", "8"], {"3": by_node["3"]}),
        ["7", "8"],
    )


def test_an_error_of_ours_has_comfyuis_form() -> None:
    good, error, outputs, by_node = refusal(InvalidConfig("no way"), {"2": {"class_type": "Blur"}}, ["2"])
    assert (good, outputs) == (False, [])
    assert error is not None
    assert error.keys() == {"type", "message", "details", "extra_info"}
    assert by_node["2"]["class_type"] == "Blur"
    assert by_node["2"]["errors"][0]["details"] == "no way"
