"""The colours of all pictures, and the style sheet with their light and dark variants.

Elements have class names only. A hue is an accent and a tint, each for light and for dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PLACE_HUES", "hue_of", "place_hues", "stylesheet"]


@dataclass(frozen=True)
class _Hue:
    accent: str
    tint: str
    dark_accent: str
    dark_tint: str


_HUES: dict[str, _Hue] = {
    "grey": _Hue("#66707d", "#f1f3f6", "#9aa5b3", "#22272f"),
    "indigo": _Hue("#4653d6", "#eceeff", "#9aa5ff", "#23274a"),
    "orange": _Hue("#c4560c", "#fff0e2", "#f6a05c", "#42280f"),
    "teal": _Hue("#0c7d74", "#e0f6f3", "#58cfc2", "#0f3532"),
    "violet": _Hue("#8a3fd1", "#f5ebff", "#c79bf7", "#34204d"),
    "blue": _Hue("#0b6fb8", "#e4f2fd", "#6ab7f5", "#102f49"),
    "pink": _Hue("#c02c78", "#ffeaf4", "#f58cc0", "#451a31"),
    "olive": _Hue("#5f7a0a", "#f2f7dc", "#b4d058", "#2b340e"),
    "green": _Hue("#1b803c", "#e4f6e9", "#66cf86", "#133620"),
    "amber": _Hue("#a16a00", "#fdf3d3", "#e6b84a", "#3b2c08"),
    "rose": _Hue("#c22f3f", "#ffeaec", "#f88f98", "#451b20"),
}

_FAMILIES = {
    "backbone": "indigo",
    "solver": "orange",
    "codec": "teal",
    "conditioner": "violet",
    "tokenizer": "blue",
    "adapter": "pink",
    "guidance": "olive",
    "position_embedder": "amber",
    "llm": "rose",
    "vlm": "rose",
    "procedural": "green",
    "image": "teal",
    "text": "blue",
    "diffusers": "indigo",
    "comfy": "amber",
    "identity": "grey",
}

PLACE_HUES: tuple[str, ...] = ("blue", "orange", "green", "violet", "rose", "teal", "amber", "pink", "indigo", "olive")
"""Hues assigned to places in order; ``local`` is grey."""


def hue_of(block_type: str) -> tuple[str, str]:
    """Return ``(hue, family)`` of a block type by its role or family prefix (``solver/ddim``, ``solver_ddim``); grey if unknown."""
    lowered = block_type.lower()
    for family, hue in _FAMILIES.items():
        if lowered == family or lowered.startswith((family + "/", family + "_")):
            return hue, family
    return "grey", lowered.split("/")[0] if "/" in lowered else "other"


def place_hues(names: Sequence[str]) -> dict[str, str]:
    """Return one hue per place name, in the order of the names; hues repeat after ten places."""
    remote = [name for name in names if name != "local"]
    hues = {name: PLACE_HUES[index % len(PLACE_HUES)] for index, name in enumerate(remote)}
    return {name: hues.get(name, "grey") for name in names}


_SANS = '-apple-system,"Segoe UI",Helvetica,Arial,"DejaVu Sans",sans-serif'
_MONO = 'ui-monospace,Consolas,Menlo,"DejaVu Sans Mono",monospace'

_SHAPES = (
    f".y-t{{font-family:{_SANS}}}.y-heading{{font-size:17px;font-weight:600}}.y-name{{font-size:13px;font-weight:600}}"
    ".y-label{font-size:11px}.y-small{font-size:10px}.y-strong{font-weight:600}"
    f".y-code{{font-family:{_MONO};font-size:10px}}"
    ".y-box{stroke-width:1.2}.y-wire{fill:none;stroke-width:1.5;stroke-opacity:.8}"
    ".y-loop-wire{fill:none;stroke-width:1.6;stroke-dasharray:6 4}.y-dashed{stroke-dasharray:4 3}"
    ".y-ring{fill:none;stroke-width:5;stroke-linecap:round}.y-read{fill:none;stroke-width:1.3;stroke-opacity:.55}"
    ".y-write{fill:none;stroke-width:2.4}.y-rule{stroke-width:1}"
)

# class -> (property, light, dark)
_PAINTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "page": (("fill", "#ffffff", "#0f141b"), ("stroke", "#d6dce3", "#2c343e")),
    "ink": (("fill", "#1d232b", "#e4e9ef"),),
    "soft": (("fill", "#5a6572", "#9ba7b4"),),
    "box": (("fill", "#ffffff", "#171d26"),),
    "inner": (("fill", "#fafbfc", "#121820"), ("stroke", "#e1e6ec", "#2a323c")),
    "rule": (("stroke", "#e1e6ec", "#2a323c"),),
    "axis": (("stroke", "#a9b3be", "#4a5563"),),
    "ring": (("stroke", "#c5ced9", "#3a4552"),),
    "ring-head": (("fill", "#c5ced9", "#3a4552"),),
    "loop-wire": (("stroke", "#d6246e", "#ff7db0"),),
    "loop": (("fill", "#d6246e", "#ff7db0"),),
    "loop-badge": (("fill", "#ffeef5", "#40182b"), ("stroke", "#d6246e", "#ff7db0")),
    "light": (("fill", "#ffffff", "#0f141b"),),
}


def stylesheet(theme: str = "auto") -> str:
    """Return the CSS of a picture: light colours and, for pages that prefer them, dark ones; only one set if ``theme`` is not ``auto``."""
    light = "".join(_rule(name, [(prop, value) for prop, value, _ in paints]) for name, paints in _PAINTS.items())
    dark = "".join(_rule(name, [(prop, value) for prop, _, value in paints]) for name, paints in _PAINTS.items())
    for name, hue in _HUES.items():
        light += _hue_rules(name, hue.accent, hue.tint)
        dark += _hue_rules(name, hue.dark_accent, hue.dark_tint)
    if theme != "auto":
        return _SHAPES + (dark if theme == "dark" else light)
    return f"{_SHAPES}{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _rule(name: str, declarations: Sequence[tuple[str, str]]) -> str:
    return f".y-{name}{{{';'.join(f'{prop}:{value}' for prop, value in declarations)}}}"


def _hue_rules(name: str, accent: str, tint: str) -> str:
    return f".y-{name}{{fill:{accent}}}.y-{name}-tint{{fill:{tint}}}.y-{name}-line{{stroke:{accent}}}"
