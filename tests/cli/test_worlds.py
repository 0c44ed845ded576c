"""The chronicle of a world as a page, and the pictures of a state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from yggdrasill.cli.worlds import chronicle_html, pictures_of, save_passes
from yggdrasill.stage import State
from yggdrasill.world import World

IMAGES = torch.zeros(2, 4, 4, 3)


@pytest.mark.parametrize(
    "block, count",
    [(IMAGES, 2), ({"map": IMAGES, "note": "x"}, 2), ([IMAGES, IMAGES[:1]], 3), ({"a": [IMAGES]}, 2), ("text", 0), (None, 0)],
)
def test_pictures_are_found_in_a_block_a_dict_and_a_list(block: Any, count: int) -> None:
    found = pictures_of(State({3: block}))
    assert [tuple(image.shape) for image in found] == [(4, 4, 3)] * count


def test_the_chronicle_has_a_section_per_pass_with_its_entry_and_pictures() -> None:
    content = {
        "title": "Two Lands",
        "story": "It begins.",
        "chronicle": [{"episode": 1, "description": "a grey field", "account": "the ice broke"}],
    }
    passes = [
        State({1: {"episode": 1, "title": "First", "text": "A storm", "action": "dig"}}, content=content, passes=1),
        State({1: "plain words"}, content=content, passes=2),
    ]

    page = chronicle_html(World("w"), passes, {1: ["pass-01.png"], 2: []})

    assert page.count("<h2>") == 2
    for text in ("<h1>Two Lands</h1>", "It begins.", "1. First", "A storm", "dig", "a grey field", "the ice broke", "plain words"):
        assert text in page
    assert 'src="pass-01.png"' in page


def test_the_chronicle_escapes_what_blocks_wrote() -> None:
    page = chronicle_html(World("<w>"), [State({1: "<script>alert(1)</script>"}, passes=1)], {1: ['"><img>']})

    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert '"><img>' not in page
    assert "<h1>&lt;w&gt;</h1>" in page


def test_pictures_and_chronicle_are_written_together(tmp_path: Path) -> None:
    files = save_passes(World("w"), [State({1: "x", 3: IMAGES}, passes=1)], tmp_path / "out")

    assert [file.name for file in files] == ["pass-01.png", "pass-01-1.png", "chronicle.html"]
    assert all(file.is_file() for file in files)
