"""The pairing line: written, read back, and read as people paste it."""

from __future__ import annotations

import pytest

from yggdrasill.errors import InvalidArgument
from yggdrasill.remote.endpoint import Pairing, pairing_line, read_pairing

URL, TOKEN = "http://10.1.2.3:8188", "s3cret-tok_en"


@pytest.mark.parametrize("name", [None, "forge", "the forge"])
def test_a_line_is_read_as_it_was_written(name: str | None) -> None:
    assert read_pairing(pairing_line(URL, TOKEN, name)) == Pairing(URL, name, TOKEN)


def test_a_pairing_line_is_not_a_command_with_the_token_as_an_argument() -> None:
    assert not pairing_line(URL, TOKEN, "forge").startswith("yggdrasill ")


@pytest.mark.parametrize(
    "line, found",
    [
        (f"on another machine: yggdrasill endpoints add NAME {URL} --token {TOKEN}", Pairing(URL, None, TOKEN)),
        (f"$ yggdrasill endpoints add forge {URL} --token {TOKEN}\n", Pairing(URL, "forge", TOKEN)),
        (f"yggdrasill endpoints add NAME {URL} --token -   (the token is in /data/token)", Pairing(URL, None, None)),
        (f"yggdrasill endpoints add NAME {URL} --token-env FORGE", Pairing(URL, None, None)),
        (f"on another machine: yggdrasill-pairing: forge {URL} {TOKEN}\n", Pairing(URL, "forge", TOKEN)),
        (URL, Pairing(URL)),
        (f"  {URL} {TOKEN} ", Pairing(URL, None, TOKEN)),
        (f"{URL} --token {TOKEN}", Pairing(URL, None, TOKEN)),
        ("10.1.2.3:8188", Pairing(URL)),
        (f"10.1.2.3:8188 {TOKEN}", Pairing(URL, None, TOKEN)),
        ("forge.lan", Pairing("http://forge.lan")),
        ("gpubox:8188", Pairing("http://gpubox:8188")),
        ("[fd00::17]:8188", Pairing("http://[fd00::17]:8188")),
    ],
)
def test_what_people_paste_is_understood(line: str, found: Pairing) -> None:
    assert read_pairing(line) == found


@pytest.mark.parametrize(
    "line",
    [
        "",
        "   ",
        "forge",
        "yggdrasill endpoints add",
        "yggdrasill-pairing:",
        f"yggdrasill-pairing: {URL}",
        f"yggdrasill-pairing: forge {URL} a b",
        f"yggdrasill endpoints add {URL}",
        f"{URL} a b",
        "ftp://host",
        "it's",
        f"{'a' * 5000} {URL}",
    ],
)
def test_anything_else_is_refused_without_repeating_it(line: str) -> None:
    with pytest.raises(InvalidArgument, match="not a pairing line") as raised:
        read_pairing(line)
    assert URL not in raised.value.message


def test_the_token_is_in_no_repr() -> None:
    assert TOKEN not in repr(read_pairing(pairing_line(URL, TOKEN)))
