"""Errors about endpoints as clients see them: with names and without addresses."""

from __future__ import annotations

import pytest

from yggdrasill.errors import AccessDenied, EndpointUnreachable, InvalidConfig
from yggdrasill.server_ext.comfy.url_redaction import public_message, redact_urls, strip_urls


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
        ("endpoint 'forge' at http://forge:8400/key: the token is wrong", "endpoint 'forge': the token is wrong"),
        ("endpoint 'forge' at http://forge:8400 speaks no Yggdrasill protocol", "endpoint 'forge' speaks no Yggdrasill protocol"),
        ("it needs a GPU (24 GB) and has none", "it needs a GPU (24 GB) and has none"),
    ],
)
def test_only_addresses_are_removed_from_a_message(text: str, said: str) -> None:
    assert strip_urls(text) == said


def test_a_message_names_the_endpoint() -> None:
    assert public_message(EndpointUnreachable("it is silent", endpoint="forge")) == "endpoint 'forge': it is silent"
    assert public_message(EndpointUnreachable("endpoint 'forge' is silent", endpoint="forge")) == "endpoint 'forge' is silent"
    assert public_message(InvalidConfig("it is odd")) == "it is odd"


def test_an_error_keeps_its_class_and_other_addresses() -> None:
    said = "endpoint 'forge' at http://forge:8400/key: it fetches no model from 'https://models.example/a.ckpt'"
    error = redact_urls(AccessDenied(said, endpoint="forge", url="http://forge:8400/key/graphs", reason="source"), "http://forge:8400/key")
    assert type(error) is AccessDenied
    assert error.message == str(error) == "endpoint 'forge': it fetches no model from 'https://models.example/a.ckpt'"
    assert error.details == {"endpoint": "forge", "reason": "source"}
