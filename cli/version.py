"""``yggdrasill version``: make, check, install and lock version specs of ComfyUI."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yggdrasill.cli.console import Console
from yggdrasill.errors import DuplicateName, InvalidArgument

if TYPE_CHECKING:
    from yggdrasill.version_specs.model import VersionSpec

__all__ = ["add", "main"]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    spec = argparse.ArgumentParser(add_help=False)
    spec.add_argument("spec", metavar="VERSION", help="a version id, looked up in the folders, or the file of a spec (.json, .yaml)")
    spec.add_argument(
        "--versions",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of specs; may be repeated (default: YGGDRASILL_VERSIONS, ./versions and the examples)",
    )
    network = argparse.ArgumentParser(add_help=False)
    network.add_argument(
        "--cache", metavar="DIR", help="the root of the cache (default: COMFY_CACHE_ROOT, or a folder on the network volume)"
    )
    network.add_argument("--allow-private", action="store_true", help="allow sources inside the network, and plain http")

    init = actions.add_parser("init", help="write the spec of a ComfyUI folder, or of a snapshot, lock file or archive of another tool")
    init.add_argument("comfy", nargs="?", metavar="COMFY", help="the folder with ComfyUI's main.py (default: COMFYUI_PATH)")
    init.add_argument(
        "--from", dest="source", metavar="FILE", help="a ComfyUI-Manager snapshot, comfy-lock.yaml, .cpack.zip or comfy-build.yaml"
    )
    init.add_argument("--out", "-o", metavar="FILE", help="the file to write (default: versions/NAME.json)")
    init.add_argument("--name", metavar="NAME", help="the name of the version (default: the stem of the file)")
    init.add_argument("--format", default="build", metavar="FORMAT", help="build, snapshot, lock or pack (default: %(default)s)")
    init.add_argument("--workflow", metavar="FILE", help="a workflow of the editor, which defines the urls of models")
    init.add_argument("--python", metavar="FILE", help="the Python of ComfyUI (default: that of its environment)")
    init.add_argument("--cache", metavar="DIR", help="the root of the cache, in which hashes are kept")
    init.add_argument("--force", action="store_true", help="replace an existing file")

    actions.add_parser("validate", parents=[spec], help="check a spec without this machine")

    verify = actions.add_parser("verify", parents=[spec, network], help="list what this machine lacks, then fetch, install and link it")
    verify.add_argument("--comfy", metavar="PATH", help="the folder of ComfyUI (default: COMFY_HOME, or /workspace/ComfyUI)")
    verify.add_argument(
        "--models-dir", metavar="DIR", help="the folder of models (default: the spec's, MODELS_DIR, or models in ComfyUI's folder)"
    )
    verify.add_argument("--python", metavar="FILE", help="the Python of ComfyUI, whose packages are checked")
    verify.add_argument(
        "--parallel", type=int, default=4, metavar="N", help="files that are fetched at the same time (default: %(default)s)"
    )
    verify.add_argument("--no-fetch", action="store_true", help="list only; send and change nothing")

    lock = actions.add_parser(
        "lock", parents=[spec, network], help="make a spec exact: hashes and sizes of models, commits instead of branches"
    )
    lock.add_argument("--out", "-o", metavar="FILE", help="the file to write (default: the spec itself)")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Run the action and return the exit code: 1 if something is missing, 2 if the spec is invalid."""
    actions: dict[str, Callable[[argparse.Namespace, Console], int]] = {
        "init": _init,
        "validate": _validate,
        "verify": _verify,
        "lock": _lock,
    }
    return actions[arguments.action](arguments, console)


def _open(arguments: argparse.Namespace) -> VersionSpec:
    """Return the spec that is named by its file or by its id."""
    from yggdrasill.version_specs.store import SUFFIXES, load_version, read_spec, version_folders

    file = Path(arguments.spec).expanduser()
    if file.suffix.lower() in SUFFIXES:
        return read_spec(file)
    return load_version(arguments.spec, [Path(folder).expanduser() for folder in arguments.versions] or version_folders())


def _cache(arguments: argparse.Namespace) -> Path:
    from yggdrasill.version_specs.places import cache_root

    return Path(arguments.cache).expanduser() if arguments.cache else cache_root()


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[int, int, str], object]]:
    """Yield a function that reports progress as a bar of bytes on standard error."""
    from tqdm import tqdm

    bar: tqdm[Any] | None = None

    def report(done: int, total: int, what: str) -> None:
        nonlocal bar
        if bar is None or bar.desc != what:
            if bar is not None:
                bar.close()
            bar = console.progress(total, what, unit="B")
        bar.total = total
        bar.update(done - bar.n)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()


def _init(arguments: argparse.Namespace, console: Console) -> int:
    from yggdrasill.version_specs.formats import WRITERS, import_spec, write_format
    from yggdrasill.version_specs.store import check_version_id

    if arguments.comfy and arguments.source:
        raise InvalidArgument("Name a folder of ComfyUI or --from FILE, not both.")
    if arguments.format not in WRITERS:
        raise InvalidArgument(f"Unknown format {arguments.format!r}. Available: {', '.join(map(repr, WRITERS))}.")
    name = arguments.name or (Path(arguments.out).name.partition(".")[0] if arguments.out else None)
    if name is None and not arguments.source:
        raise InvalidArgument("The version has no name. Pass --name NAME or --out FILE.")
    if name is not None:
        check_version_id(name)
    if arguments.source:
        imported = import_spec(Path(arguments.source).expanduser(), name)
        spec, notes = imported.spec, imported.notes
    else:
        spec, notes = _scanned(arguments, name or "", console)
    out = Path(arguments.out).expanduser() if arguments.out else Path("versions") / f"{check_version_id(spec.name)}.json"
    if out.exists() and not arguments.force:
        raise DuplicateName(f"{str(out)!r} exists. Pass --force to replace it, or --out FILE for another file.")
    write_format(spec, out, arguments.format)
    for note in notes:
        console.say(f"note: {note}")
    definition = spec.definition
    console.say(f"{out}: {len(definition.models)} models, {len(definition.custom_nodes)} custom nodes")
    console.result({"file": str(out), "notes": list(notes), "spec": spec.to_document()})
    return 0


def _scanned(arguments: argparse.Namespace, name: str, console: Console) -> tuple[VersionSpec, tuple[str, ...]]:
    from yggdrasill.cli.installation import find_installation
    from yggdrasill.foundation.config import read_document
    from yggdrasill.remote.model_names import model_sources
    from yggdrasill.version_specs.cache import ModelCache
    from yggdrasill.version_specs.scan import scan_installation

    home = Path(arguments.comfy).expanduser() if arguments.comfy else find_installation(python=arguments.python).folder
    sources = model_sources(read_document(arguments.workflow)) if arguments.workflow else {}
    with _bar(console) as report:
        scan = scan_installation(
            home,
            name,
            python=Path(arguments.python).expanduser() if arguments.python else None,
            hashes=ModelCache(_cache(arguments)).hashes,
            sources=sources,
            progress=report,
        )
    return scan.spec, scan.notes


def _validate(arguments: argparse.Namespace, console: Console) -> int:
    from yggdrasill.version_specs.checks import errors_of, warnings_of

    spec = _open(arguments)
    errors, warnings = errors_of(spec), warnings_of(spec)
    for error in errors:
        console.say(f"error: {error}")
    for warning in warnings:
        console.say(f"warning: {warning}")
    facts = {"models": len(spec.definition.models), "custom_nodes": len(spec.definition.custom_nodes)}
    counts = f"{facts['models']} models, {facts['custom_nodes']} custom nodes, {len(errors)} errors, {len(warnings)} warnings"
    console.say(f"version {spec.version_id!r}: {counts}")
    console.result({"version_id": spec.version_id, "file": str(spec.file), **facts, "errors": errors, "warnings": warnings})
    return 2 if errors else 0


def _verify(arguments: argparse.Namespace, console: Console) -> int:
    from yggdrasill.version_specs.places import comfy_home
    from yggdrasill.version_specs.plan import VerifyOptions, size_text
    from yggdrasill.version_specs.verify import verify_version

    spec = _open(arguments)
    options = VerifyOptions(
        models_dir=arguments.models_dir,
        python=Path(arguments.python).expanduser() if arguments.python else None,
        allow_private=arguments.allow_private or None,
        parallel=arguments.parallel,
    )
    home = Path(arguments.comfy).expanduser() if arguments.comfy else comfy_home()
    with _bar(console) as report:
        done = asyncio.run(
            verify_version(
                spec,
                comfy_home=home,
                cache=_cache(arguments),
                progress=report,
                fetch=not arguments.no_fetch,
                options=options,
                say=console.say,
            )
        )
    for note in done.notes:
        console.say(f"note: {note}")
    console.say(
        f"version {done.version_id!r} is complete: {len(done.present)} models present, {len(done.fetched)} fetched ({size_text(done.fetched_bytes)}), "
        f"{len(done.linked)} linked, {len(done.installed)} custom nodes installed"
    )
    console.result(done.to_dict())
    return 0


def _lock(arguments: argparse.Namespace, console: Console) -> int:
    from yggdrasill.remote.public_hosts import allows_private
    from yggdrasill.version_specs.cache import ModelCache
    from yggdrasill.version_specs.lock import lock_spec
    from yggdrasill.version_specs.sources import SourcePool
    from yggdrasill.version_specs.store import write_spec

    spec = _open(arguments)
    out = Path(arguments.out).expanduser() if arguments.out else spec.file
    if out is None:
        raise InvalidArgument("The spec has no file. Pass --out FILE.")

    async def locked() -> VersionSpec:
        async with SourcePool(allow_private=arguments.allow_private or allows_private()) as pool:
            return await lock_spec(spec, ModelCache(_cache(arguments)), pool, progress=report)

    with _bar(console) as report:
        exact = asyncio.run(locked())
    write_spec(exact, out)
    console.say(f"{out}: {'was exact' if exact == spec else 'is exact now'}")
    console.result({"file": str(out), "changed": exact != spec, "spec": exact.to_document()})
    return 0
