"""The HTTP status of errors, and their classes on the client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from yggdrasill import errors
from yggdrasill.errors import AccessDenied, EndpointUnreachable, UnknownArtifact, YggdrasillError, error_from_dict
from yggdrasill.protocol.statuses import STATUS, status_of

EXPECTED = {
    "InvalidArgument": 400, "InvalidConfig": 400, "CorruptData": 400, "LimitExceeded": 400, "CannotTravel": 400, "InvalidState": 400,
    "CheckpointMismatch": 400, "UnsupportedFormat": 400, "AccessDenied": 401, "UnknownGraph": 404, "UnknownJob": 404, "UnknownBlockType": 404,
    "UnknownArtifact": 404, "JobConflict": 409, "PayloadTooLarge": 413, "BlockFailed": 422, "Cancelled": 422, "TimedOut": 422,
    "ProtocolMismatch": 426, "QueueFull": 429, "EndpointFailed": 500, "EndpointUnreachable": 502, "StorageFailed": 507,
}  # fmt: skip


def tree(cls: type[YggdrasillError]) -> Iterator[type[YggdrasillError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from tree(sub)


ERRORS = sorted(
    {cls for cls in tree(YggdrasillError) if cls.__module__ == errors.__name__} - {YggdrasillError}, key=lambda cls: cls.__name__
)


@pytest.mark.parametrize("cls", ERRORS)
def test_every_error_has_a_status_and_is_raised_again_as_its_class(cls: type[YggdrasillError]) -> None:
    error = cls("what, what exists, what to do", node="a/b")
    assert 400 <= status_of(error) <= 599
    back = error_from_dict(error.to_dict())
    assert (type(back), back.message, back.details) == (cls, error.message, error.details)


@pytest.mark.parametrize("name,status", EXPECTED.items())
def test_errors_have_the_expected_status(name: str, status: int) -> None:
    assert status_of(getattr(errors, name)("...")) == status


@pytest.mark.parametrize(
    "error,status",
    [
        (AccessDenied("...", reason="token"), 401),
        (AccessDenied("...", reason="host"), 403),
        (AccessDenied("...", reason="origin"), 403),
        (EndpointUnreachable("...", reason="shutdown"), 503),
        (UnknownArtifact("...", missing=["00"]), 409),
        (UnknownArtifact("...", missing=["00"], hash="00"), 404),
    ],
)
def test_some_statuses_depend_on_the_details(error: YggdrasillError, status: int) -> None:
    assert status_of(error) == status


def test_the_map_contains_only_error_classes() -> None:
    assert set(STATUS) <= set(tree(YggdrasillError))
