"""Every module says what is public in it, and says it truly."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest

import yggdrasill

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"benchmarks", "build", "dist", "docs", "node_modules", "out", "tests", "web", "workflows"}
#: Modules that only import inside a ComfyUI process; their source is checked, they are not imported.
INSIDE_COMFYUI = (Path("nodes"), Path("server_ext", "comfy"))
MODULES = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.py")
    if (top := path.relative_to(ROOT).parts[0]) not in OUTSIDE and not top.startswith(".")
)
by_path = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.as_posix())


def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def declared(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, (ast.Assign, ast.AnnAssign))
            assert node.value is not None
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def inside_comfyui(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in INSIDE_COMFYUI)


def load(path: Path) -> ModuleType:
    return importlib.import_module(".".join(["yggdrasill", *path.with_suffix("").parts]).removesuffix(".__init__"))


def definitions(tree: ast.Module) -> list[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


@by_path
def test_all_holds_every_public_class_and_function_once(path: Path) -> None:
    tree = parse(path)
    names = declared(tree)
    assert names is not None, f"{path} has no __all__"
    assert len(names) == len(set(names))
    assert {node.name for node in definitions(tree)} <= set(names)


@by_path
def test_every_name_in_all_exists(path: Path) -> None:
    tree = parse(path)
    if inside_comfyui(path):
        bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        bound |= {node.name for node in definitions(tree)}
        bound |= {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert set(declared(tree) or ()) <= bound
    else:
        module = load(path)
        assert not [name for name in declared(tree) or () if getattr(module, name, None) is None]


@by_path
def test_modules_and_public_things_say_what_they_are(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree), f"{path} has no module docstring"
    things = definitions(tree)
    if not inside_comfyui(path):
        things += [
            member for thing in things if isinstance(thing, ast.ClassDef) for member in new_methods(thing, getattr(load(path), thing.name))
        ]
    assert not [f"{path}:{thing.lineno} {thing.name}" for thing in things if not ast.get_docstring(thing)]


def new_methods(node: ast.ClassDef, cls: type) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public methods that no base class declares, so that nothing else says their contract."""
    return [
        member
        for member in node.body
        if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef))
        and not member.name.startswith("_")
        and not any(member.name in vars(base) for base in cls.__mro__[1:])
        and not any(isinstance(mark, ast.Attribute) and mark.attr in {"setter", "deleter"} for mark in member.decorator_list)
        and not any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in member.decorator_list)
    ]


@pytest.mark.parametrize("name", yggdrasill.__all__)
def test_the_package_gives_each_public_name(name: str) -> None:
    assert getattr(yggdrasill, name) is not None
    assert name in dir(yggdrasill)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Grph'"):
        _ = yggdrasill.Grph
