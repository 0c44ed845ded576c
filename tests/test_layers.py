"""Imports run one way and have no cycles, and importing the package stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"benchmarks", "build", "dist", "docs", "node_modules", "out", "tests", "web", "workflows"}
LEVELS = ("errors", "values", "executor", "foundation", "pipeline", "stage", "world", "protocol", "remote", "version_specs", "server_ext")
TOPS = ("__main__", "cli", "gateway", "nodes", "rp_handler", "worker")
#: What each part of the package may import from the package, besides itself.
MAY_IMPORT = {level: set(LEVELS[:rank]) for rank, level in enumerate(LEVELS)}
MAY_IMPORT |= {top: {*LEVELS, *TOPS, "draw"} for top in TOPS}
MAY_IMPORT["server_ext"] |= {"draw"}
MAY_IMPORT |= {"blocks": {"errors", "values", "foundation"}, "draw": {"errors", "values", "foundation"}}
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


def module_name(path: Path) -> str:
    return ".".join(("yggdrasill", *path.with_suffix("").parts)).removesuffix(".__init__")


def runtime_imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports when it is executed or called; what only a type checker reads is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for branch in node.orelse:
                yield from runtime_imports(branch)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from runtime_imports(node)


def import_graph() -> dict[str, set[str]]:
    """Modules of the package by name, each with those it imports at run time; the root package is above them all and left out."""
    trees = {module_name(path): ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in modules()}
    trees.pop("yggdrasill")
    graph = {}
    for module, tree in trees.items():
        named = {name if name in trees else name.rpartition(".")[0] for name in runtime_imports(tree)}
        graph[module] = named & trees.keys()
    return graph


def modules_in_cycles(graph: dict[str, set[str]]) -> set[str]:
    """Modules that import themselves through others: what is left when those without open imports are removed, from both ends."""
    left = {module: set(named) for module, named in graph.items()}
    while True:
        importing = {module for module, named in left.items() if named}
        imported = {name for named in left.values() for name in named}
        kept = importing & imported
        if kept == left.keys():
            return kept
        left = {module: left[module] & kept for module in kept}


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


def test_no_module_names_a_layer_above_it_in_a_string() -> None:
    wrong = []
    for path in modules():
        part = part_of(path)
        above = set(LEVELS) - MAY_IMPORT.get(part, set(LEVELS)) - {part}
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = {name for name in re.findall(r"yggdrasill[.:/](\w+)", node.value) if name in above}
                wrong += [f"{path}:{node.lineno} names {name} in {node.value[:60]!r}" for name in named]
    assert not wrong


def test_no_module_imports_itself_through_others_at_run_time() -> None:
    assert sorted(modules_in_cycles(import_graph())) == []


def test_a_cycle_of_imports_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set[str](), "e": {"a"}}
    assert modules_in_cycles(graph) == {"b", "c"}
    assert list(runtime_imports(ast.parse("def f():\n    from yggdrasill.a import b"))) == ["yggdrasill.a.b"]
    assert not list(runtime_imports(ast.parse("if TYPE_CHECKING:\n    from yggdrasill.a import b")))


def test_drawing_reads_the_kinds_of_the_foundation_and_nothing_else_of_it() -> None:
    named = {name for path in modules() if part_of(path) == "draw" for _, name in imports(path) if name.startswith("yggdrasill.foundation")}
    assert {name.rpartition(".")[0] for name in named} == {"yggdrasill.foundation.kinds"}


def test_no_import_is_relative() -> None:
    assert not [f"{path}:{line} {name}" for path in modules() for line, name in imports(path) if name.startswith(".")]


COMFYUI = {
    "app",
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_execution",
    "comfyui_version",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
COMPAT = Path("server_ext", "comfy", "compat")
IMPORT_BY_NAME = {"__import__", "import_module"}


def comfyui_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every import of ComfyUI, also by a constant name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [node.module or ""]
        elif isinstance(node, ast.Call) and node.args and called_name(node.func) in IMPORT_BY_NAME:
            named = [node.args[0].value] if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str) else []
        else:
            continue
        yield from ((node.lineno, name) for name in named if name.partition(".")[0] in COMFYUI)


def called_name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def test_only_compat_imports_comfyui_and_the_nodes_its_versioned_api() -> None:
    wrong = []
    for path in modules():
        for line, name in comfyui_imports(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            is_node_api = path.parts[0] == "nodes" and name.startswith("comfy_api.v")
            if not path.is_relative_to(COMPAT) and not is_node_api:
                wrong.append(f"{path}:{line} imports {name}")
    assert not wrong


def test_code_inside_comfyui_imports_by_name_only_in_compat() -> None:
    """A name that is computed could be ComfyUI's."""
    inside = [path for path in modules() if path.parts[0] == "nodes" or path.is_relative_to(Path("server_ext", "comfy"))]
    assert not [
        f"{path}:{node.lineno}"
        for path in inside
        if not path.is_relative_to(COMPAT)
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and called_name(node.func) in IMPORT_BY_NAME
    ]


def test_imports_of_comfyui_are_found_in_every_form() -> None:
    text = "import comfy.utils\nfrom server import PromptServer\nimportlib.import_module('execution')\n__import__('nodes')\nimport json\n"
    assert [line for line, _ in comfyui_imports(ast.parse(text))] == [1, 2, 3, 4]


@pytest.mark.parametrize("statement", ["import yggdrasill", "from yggdrasill.foundation import Graph"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    script = f"import sys; {statement}; print(sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8", check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
