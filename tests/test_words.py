"""Retired words stay retired: code, docs, messages and editor texts use the terms of ``docs/glossary.md``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {"build", "dist", "node_modules", "out", "pictures"}
SUFFIXES = {".py", ".js", ".md", ".toml", ".css", ".json", ".yaml"}
#: Story texts and terrain have shelves, doors and neighbours of their own; saved prompts hold other people's words.
CONTENT = ("blocks/procedural", "blocks/text", "workflows", "tests/samples", "tests/test_words.py", "docs/conformance.json")

#: Each retired word, as a pattern over identifiers and prose, with the term that replaced it and the paths where it has another meaning.
RETIRED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "depot": (r"depots?", "artifact client", ()),
    "board": (r"board", "job manager", ("web", "docs", "tests/comfy", "locales")),
    "workshop": (r"workshops?|shops?", "task services", ("docs",)),
    "shelf": (r"shelf|shelves?d?", "job inputs", ()),
    "teller": (r"tellers?", "event throttle", ()),
    "loan": (r"loans?|lend|lends|lent|lenders?|lending", "re-entrant run, released slot", ()),
    "house": (r"house", "host paths", ()),
    "lifeline": (r"lifelines?", "parent watchdog", ()),
    "neighbour": (r"neighbours?", "local peer", ("draw", "benchmarks/shapes.py", "tests/draw")),
    "parcel": (r"parcels?", "streaming packer", ()),
    "journey": (r"journeys?", "transfer", ()),
    "carve": (r"carv(e|es|ed|ing|ings)", "partition", ()),
    "stand-in": (r"stand[-_ ]?ins?", "local fallback, placeholder", ()),
    "whoever": (r"whoever|somebody|oftener", "caller, user, more often", ()),
    "shall": (r"shall", "must, should", ()),
    "stands twice": (r"stands twice|stood twice", "duplicate", ()),
    "is no": (r"(?<!there )(?:is no(?= (?!longer)[a-z])|(?-i:is none))", "is not a, has no", ()),
    "there is {list}": (r"there is (?=\{)", "Available: ...", ()),
}


def files() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*")):
        name = path.relative_to(ROOT)
        hidden = any(part.startswith(".") or part in SKIPPED or part.endswith(".egg-info") for part in name.parts)
        if path.suffix in SUFFIXES and path.is_file() and not hidden and not name.as_posix().startswith(CONTENT):
            yield name.as_posix(), path


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_is_used_nowhere(word: str) -> None:
    pattern, term, elsewhere = RETIRED[word]
    found = re.compile(rf"(?<![A-Za-z])(?:{pattern})(?![a-z])", re.IGNORECASE)
    uses = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, path in files()
        if not name.startswith(elsewhere)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if found.search(line)
    ]
    assert not uses, f"{len(uses)} uses of {word!r}; the term is: {term}\n" + "\n".join(uses[:50])


def test_the_glossary_defines_every_term_once() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^\| \*\*([^*]+)\*\*", text, re.MULTILINE)
    assert len(terms) >= 40
    assert len(terms) == len(set(terms))
