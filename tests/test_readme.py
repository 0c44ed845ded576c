"""The documentation is correct: its Python runs, its command lines parse, its links and the tests it names exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("*/README.md")),
]
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Line number and text of a page's fenced blocks of one language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in found]


def commands(page: Path) -> list[str]:
    """Every line of a console block that calls ``yggdrasill``, without prompt and comment."""
    lines = (line.removeprefix("$ ") for _, text in blocks(page, "console") for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.split(maxsplit=1)[:1] == ["yggdrasill"]]


@by_page
def test_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for line, text in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + text, str(page), "exec"), names)


@by_page
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [target for target in targets if "://" not in target and not (page.parent / target).exists()]


@by_page
def test_command_lines_of_a_page_parse(page: Path) -> None:
    wrong = []
    for command in commands(page):
        try:
            importlib.import_module("yggdrasill.cli").build_parser().parse_args(shlex.split(command, comments=True)[1:])
        except SystemExit:
            wrong.append(command)
    assert not wrong


def test_the_tests_named_in_a_page_exist() -> None:
    existing = {name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))}
    named = {(page.name, name) for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text("utf-8"))}
    assert not [(page, name) for page, name in sorted(named) if name not in existing]


def test_the_readme_shows_python() -> None:
    assert blocks(ROOT / "README.md", "python")
