"""The table of ComfyUI versions: one row per version, in order, beside other text of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samples.conformance.core_table import write_core


def facts(version: str, *, equal: bool = True) -> dict[str, dict[str, Any]]:
    versions = {"Yggdrasill": "0.1.0", "ComfyUI": version, "Python": "3.11.7", "torch": "2.11.0", "on": "linux"}
    entries = [{"remote": True, "python": equal}, {"remote": True, "python": True}]
    return {
        "workflows": {"versions": versions, "entries": entries},
        "placing": {"entries": [{"equal": True}]},
        "templates": {"counts": {"templates": 7}},
    }


def test_each_version_has_one_row_and_other_text_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "compatibility.md"
    page.write_text("# Compatibility\n\nText before.\n", encoding="utf-8")
    write_core(page, facts("0.33.0"), "3 passed", "1.49.6", "2026-01-01")
    page.write_text(page.read_text(encoding="utf-8") + "\nText after.\n", encoding="utf-8")
    write_core(page, facts("0.4.1"), "3 passed", "1.2", "2026-01-02")
    write_core(page, facts("0.33.0", equal=False), "2 passed, 1 failed", "1.50", "2026-01-03")
    text = page.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| 0")]
    assert rows == [
        "| 0.4.1 | 1.2 | 3.11.7, 2.11.0 | 2026-01-02 | 2 of 2 | 1 of 1 | 7 | 3 passed |",
        "| 0.33.0 | 1.50 | 3.11.7, 2.11.0 | 2026-01-03 | 1 of 2 | 1 of 1 | 7 | 2 passed, 1 failed |",
    ]
    assert text.startswith("# Compatibility\n\nText before.\n")
    assert text.endswith("\nText after.\n")
    assert text.count("## ComfyUI versions") == 1
