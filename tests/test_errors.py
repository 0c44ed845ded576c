"""The tree of exceptions: builtin kinds, messages, and the form in which they cross a wire."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill import errors
from yggdrasill.errors import (
    EndpointFailed,
    UnknownEndpoint,
    YggdrasillError,
    error_context,
    error_from_dict,
    format_options,
    unknown_message,
    unknown_name,
)

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, YggdrasillError)]
by_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)

#: What a caller who knows only Python would catch.
BUILTINS: dict[str, type[Exception]] = {
    "InvalidArgument": ValueError,
    "DuplicateName": ValueError,
    "InvalidEdge": ValueError,
    "InvalidStructure": ValueError,
    "CycleFound": ValueError,
    "UnknownName": KeyError,
    "UnknownBlockType": KeyError,
    "UnknownGraph": KeyError,
    "InvalidConfig": ValueError,
    "UnsupportedVersion": ValueError,
    "MissingFile": FileNotFoundError,
    "InvalidCheckpoint": ValueError,
    "CheckpointMismatch": KeyError,
    "UnsupportedFormat": NotImplementedError,
    "CodecError": ValueError,
    "CorruptData": ValueError,
    "LimitExceeded": ValueError,
    "CannotTravel": TypeError,
    "RunError": RuntimeError,
    "BlockFailed": RuntimeError,
    "MissingInput": RuntimeError,
    "HookFailed": RuntimeError,
    "Cancelled": RuntimeError,
    "TimedOut": TimeoutError,
    "InvalidState": ValueError,
    "StorageFailed": OSError,
    "RemoteError": RuntimeError,
    "EndpointUnreachable": ConnectionError,
    "AccessDenied": PermissionError,
}


@pytest.mark.parametrize("name", BUILTINS)
def test_a_class_is_also_the_builtin_a_caller_expects(name: str) -> None:
    assert issubclass(getattr(errors, name), BUILTINS[name])


@by_class
def test_a_message_is_shown_as_it_is(kind: type[YggdrasillError]) -> None:
    assert str(kind("what is wrong; what to do", node="a")) == "what is wrong; what to do"


@by_class
def test_every_class_has_its_line_in_the_drawn_tree(kind: type[YggdrasillError]) -> None:
    lines = [line for line in (errors.__doc__ or "").splitlines() if kind.__name__ in line.replace("(", " ").split()]
    assert len(lines) == 1
    assert kind.__name__ in errors.__all__


@by_class
def test_an_error_crosses_a_wire_and_a_process(kind: type[YggdrasillError]) -> None:
    error = kind("broken", node="a/b", ports=["x"], count=2, message="inner", self=1)
    for again in (error_from_dict(json.loads(json.dumps(error.to_dict()))), pickle.loads(pickle.dumps(error))):
        if kind is not YggdrasillError:
            assert type(again) is kind
            assert again.details == error.details
        assert again.message == "broken"


def test_a_class_this_version_does_not_know_is_a_failed_endpoint() -> None:
    error = error_from_dict({"type": "FromTheFuture", "message": "odd", "details": {"node": "a"}})
    assert type(error) is EndpointFailed
    assert (error.message, error.details) == ("odd", {"node": "a", "type": "FromTheFuture"})


class Foreign(YggdrasillError):
    """Declared outside the module, so no message can name it."""


def test_only_classes_of_the_module_can_be_named_by_a_message() -> None:
    for name in ("Foreign", "YggdrasillError", "SystemExit", None, 3, ["x"]):
        assert type(error_from_dict({"type": name, "message": "x"})) is EndpointFailed


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["type", "message", "details", "other"]), json_values))
def test_any_message_makes_an_error_of_ours(payload: dict[str, Any]) -> None:
    assert isinstance(error_from_dict(payload), YggdrasillError)


@pytest.mark.parametrize(
    "names, near, text",
    [
        ([], None, "none"),
        (["b", "a"], None, "'a', 'b'"),
        (["solver", "codec", "backbone"], "solvr", "'solver', 'backbone', 'codec'"),
        ([f"n{number:02}" for number in range(15)], None, ", ".join(f"'n{number:02}'" for number in range(12)) + " and 3 more"),
    ],
)
def test_format_options_sorts_puts_near_names_first_and_truncates(names: list[str], near: str | None, text: str) -> None:
    assert format_options(names, near=near) == text


def test_unknown_name_lists_the_available_names_a_near_match_and_a_hint() -> None:
    error = unknown_name("node", "solvr", ["codec", "solver"], "Add it first.")
    assert str(error) == "Unknown node 'solvr'. Available: 'solver', 'codec'. Did you mean 'solver'? Add it first."
    assert error.details == {"name": "solvr"}
    assert str(unknown_name("node", "b", ["c", "a"])) == "Unknown node 'b'. Available: 'a', 'c'."
    assert str(unknown_name("node", "q", [])) == "Unknown node 'q'. Available: none."


def test_unknown_name_makes_an_error_of_the_given_class() -> None:
    error = unknown_name("stage", "b", ["a"], kind=UnknownEndpoint)
    assert type(error) is UnknownEndpoint
    assert str(error) == unknown_message("stage", "b", ["a"])


@by_class
def test_error_context_changes_message_args_and_repr_alike(kind: type[YggdrasillError]) -> None:
    with pytest.raises(kind) as caught, error_context("'graph.yaml'"), error_context("nodes[2]"):
        raise kind("unknown key", node="a")

    error = caught.value
    expected = "'graph.yaml': nodes[2]: unknown key"
    assert (str(error), error.message, error.args) == (expected, expected, (expected,))
    assert repr(error) == f"{kind.__name__}({expected!r})"
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(again), again.message, again.args, again.details) == (expected, expected, (expected,), {"node": "a"})


def test_error_context_leaves_other_exceptions_alone() -> None:
    with pytest.raises(ValueError, match=r"^plain$"), error_context("somewhere"):
        raise ValueError("plain")
