"""The READMEs of world and cli name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("folder", ["world", "cli"])
def test_every_test_that_a_readme_names_exists(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    file, named = "", []
    for quoted in re.findall(r"`((?:test_\w+\.py)?(?:::test_\w+)?)`", text):
        path, _, test = quoted.partition("::")
        file = path or file
        if file:
            named.append((file, test))

    assert len(named) > 4
    for file, test in named:
        source = (ROOT / "tests" / folder / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in source, f"{file}::{test}"


def test_the_module_of_the_passes_does_not_import_the_world() -> None:
    for name in ("passes", "storage"):
        source = (ROOT / "world" / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(r"world\.world(_config)? import|from yggdrasill\.world import", source)
