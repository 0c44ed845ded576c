"""The table of the ComfyUI versions that the conformance suite ran on: one row per version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samples.comfy import Installation
from samples.page_sections import read_section, write_section

__all__ = ["frontend_of", "write_core"]

_SECTION = "versions"
_HEAD = (
    "## ComfyUI versions",
    "",
    "The conformance suite on each version: workflows with remote graphs, and placements of random sets of nodes, that were equal to the local",
    "run bit for bit; official templates that were partitioned; and the suite's tests. The same version with other packages replaces its row.",
    "",
    "| ComfyUI | frontend | Python, torch | date | remote graphs equal | placements equal | templates | tests |",
    "|---|---|---|---|---|---|---|---|",
)
_ASKS_FRONTEND = "from importlib.metadata import version; print(version('comfyui-frontend-package'))"


def frontend_of(installation: Installation) -> str:
    """Return the version of ComfyUI's frontend package; ``unknown`` if its Python has none."""
    done = installation.evaluate(_ASKS_FRONTEND)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def write_core(path: Path, found: Mapping[str, Mapping[str, Any]], tests: str, frontend: str, date: str) -> None:
    """Write the row of the version that the facts ``found`` are of, and keep the rows of other versions."""
    versions = found["workflows"]["versions"]
    row = _row(found, versions, tests, frontend, date)
    others = [line for line in read_section(path, _SECTION) if re.match(r"\| \d", line) and _version(line) != versions["ComfyUI"]]
    rows = sorted([*others, row], key=lambda line: [int(number) for number in re.findall(r"\d+", _version(line))])
    write_section(path, _SECTION, "make conformance", [*_HEAD, *rows])


def _row(found: Mapping[str, Mapping[str, Any]], versions: Mapping[str, str], tests: str, frontend: str, date: str) -> str:
    workflows, placings = found["workflows"]["entries"], found.get("placing", {}).get("entries", [])
    remote = sum(entry["remote"] and entry["python"] for entry in workflows)
    placed = sum(entry["equal"] for entry in placings)
    templates = found.get("templates", {}).get("counts", {}).get("templates", 0)
    cells = [
        versions["ComfyUI"],
        frontend,
        f"{versions['Python']}, {versions['torch']}",
        date,
        f"{remote} of {len(workflows)}",
        f"{placed} of {len(placings)}",
        str(templates),
        tests,
    ]
    return f"| {' | '.join(cells)} |"


def _version(row: str) -> str:
    return row.split("|")[1].strip()
