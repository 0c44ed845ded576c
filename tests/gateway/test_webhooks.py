"""Which addresses a webhook may have."""

from __future__ import annotations

from typing import Any

import pytest

from yggdrasill.errors import InvalidArgument
from yggdrasill.gateway.webhooks import check_webhook


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "localhost",
        "a.localhost",
        "169.254.169.254",
        "[::ffff:10.0.0.1]",
        "10.0.0.1:80",
        "127.1",
        "100.64.0.1",
        "[2002:a00:1::1]",
    ],
)
def test_a_webhook_inside_the_network_is_refused_unless_the_owner_allows_it(host: str) -> None:
    with pytest.raises(InvalidArgument, match="inside the network"):
        check_webhook(f"http://{host}/hook", allow_private=False)
    assert check_webhook(f"http://{host}/hook", allow_private=True)


@pytest.mark.parametrize(
    "url", [None, 3, "", "hook", "file:///etc/passwd", "http://", "http://u:p@example.com", "http://a:99999/", "http://" + "a" * 2000]
)
def test_another_text_is_not_a_webhook(url: Any) -> None:
    with pytest.raises(InvalidArgument, match="must be an http"):
        check_webhook(url, allow_private=True)
