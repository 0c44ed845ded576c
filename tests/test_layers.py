"""Imports run one way, and importing the package stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"benchmarks", "build", "dist", "docs", "node_modules", "out", "tests", "web", "workflows"}
LEVELS = ("errors", "values", "executor", "foundation", "pipeline", "stage", "world", "remote", "server_ext")
TOPS = ("__main__", "cli", "gateway", "nodes", "worker")
#: What each part of the package may import from the package, besides itself.
MAY_IMPORT = {level: set(LEVELS[:rank]) for rank, level in enumerate(LEVELS)}
MAY_IMPORT |= {top: {*LEVELS, *TOPS, "draw"} for top in TOPS}
MAY_IMPORT["server_ext"] |= {"draw"}
MAY_IMPORT |= {"blocks": {"errors", "values", "foundation"}, "draw": {"errors", "values"}}
HEAVY = {"aiohttp", "comfy", "diffusers", "numpy", "pydantic", "torch"}


def modules() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if not parts[0].startswith(".") and parts[0] not in OUTSIDE:
            yield path.relative_to(ROOT)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of a file, a relative one with its dots."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def part_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def test_every_part_of_the_package_has_a_place_in_the_layers() -> None:
    assert {part_of(path) for path in modules()} - {"__init__"} <= MAY_IMPORT.keys()


def test_imports_run_one_way() -> None:
    wrong = []
    for path in modules():
        part = part_of(path)
        for line, name in imports(path):
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if part != "__init__" and package == "yggdrasill" and target not in {part, "", "__version__"} | MAY_IMPORT[part]:
                wrong.append(f"{path}:{line} imports {name}")
    assert not wrong


def test_no_import_is_relative() -> None:
    assert not [f"{path}:{line} {name}" for path in modules() for line, name in imports(path) if name.startswith(".")]


def test_only_the_comfy_host_and_the_nodes_import_comfyui() -> None:
    comfy = {"comfy", "comfy_api", "comfy_execution", "execution", "folder_paths", "nodes", "server"}
    allowed = (Path("nodes"), Path("server_ext", "comfy"))
    assert not [
        f"{path}:{line} {name}"
        for path in modules()
        for line, name in imports(path)
        if name.partition(".")[0] in comfy and not any(path.is_relative_to(folder) for folder in allowed)
    ]


@pytest.mark.parametrize("statement", ["import yggdrasill", "from yggdrasill.foundation import Graph"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    script = f"import sys; {statement}; print(sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8", check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
