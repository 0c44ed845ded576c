"""Workflows with plain values: numbers, texts, choices, curves, tables."""

from __future__ import annotations

from samples.conformance.workflow import Draw, Drawing

__all__ = ["VALUES", "WORDS"]

#: The texts of BuildJsonPromptIdeogram.
WORDS = {
    "high_level_description": "a tree",
    "background": "",
    "aesthetics": "",
    "lighting": "dusk",
    "medium": "",
    "color_palette": {"__value__": []},
}
_POINTS = [[0.0, 0.0], [0.3, 0.1], [0.7, 0.95], [1.0, 1.0]]


def _numbers(w: Drawing) -> None:
    largest = w.node("PrimitiveInt", value=(1 << 63) - 1)
    smallest = w.node("PrimitiveFloat", value=float.fromhex("0x1.fffffffffffffp-1022"))
    with w.part():
        total = w.node(
            "ComfyMathExpression", expression="a * 2 + b", **{"values.a": w.node("PrimitiveInt", value=21), "values.b": smallest}
        )
        number = w.node("ComfyNumberConvert", value=largest)
        again = w.node("ComfySwitchNode", switch=False, on_false=largest, on_true=smallest)
    w.capture(total[0], total[1], number[0], number[1], again)


def _texts(w: Drawing) -> None:
    words = w.node("PrimitiveString", value="Yggdrasill ᛦ 🌳 — three\nroots")
    with w.part():
        both = w.node("StringConcatenate", string_a=words, string_b="wells", delimiter=", ")
        loud = w.node("CaseConverter", string=both, mode="UPPERCASE")
        changed = w.node("RegexReplace", string=loud, regex_pattern="E+", replace="3")
        length = w.node("StringLength", string=changed)
        has = w.node("StringContains", string=changed, substring="w3lls", case_sensitive=False)
    w.capture(words, both, changed, length, has)


def _truth(w: Drawing) -> None:
    yes = w.node("PrimitiveBoolean", value=True)
    with w.part():
        no = w.node("ComfyNotNode", value=yes)
        both = w.node("ComfyAndNode", **{"values.value0": yes, "values.value1": no})
        picked = w.node("ComfySwitchNode", switch=yes, on_false=w.node("PrimitiveInt", value=1), on_true=w.node("PrimitiveInt", value=2))
    w.capture(no, both, picked)


def _choice(w: Drawing) -> None:
    """Return a COMBO value computed from the properties of a video."""
    parts = w.node("GetVideoComponents", video=w.node("LoadVideo", file="clip.mp4"))
    with w.part():
        space = w.node("ComfySwitchNode", switch=True, on_false="other", on_true=parts[4])
        told = w.node("PreviewAny", source=parts[3])
    w.capture(parts[4], space, told)


def _colour(w: Drawing) -> None:
    with w.part():
        colour = w.node("ColorToRGBInt", color="#336699aa")
    again = w.node("ColorToRGBInt", color=colour[1])
    w.capture(colour[0], colour[1], colour[2], again[0])


def _curves(w: Drawing) -> None:
    smooth = w.node("CurveEditor", curve={"points": _POINTS, "interpolation": "monotone_cubic"})
    histogram = w.node("ImageHistogram", image=w.node("LoadImage", image="picture.png"))
    with w.part():
        straight = w.node("CurveEditor", curve={"points": _POINTS, "interpolation": "linear"}, histogram=histogram[1])
        same = w.node("CurveEditor", curve=smooth, histogram=histogram[0])
    w.capture(straight, same, histogram[0])


def _ranges(w: Drawing) -> None:
    value = w.node("ConformanceSource", kind="RANGE")
    with w.part():
        same = w.node("ComfySwitchNode", switch=True, on_false=1, on_true=value)
        told = w.node("PreviewAny", source=w.node("PrimitiveInt", value=7))
    w.capture(value, same, told)


def _tables(w: Drawing) -> None:
    box = w.node("PrimitiveBoundingBox", x=4, y=5, width=10, height=12)
    boxes = w.node("CreateBoundingBoxes", width=64, height=64, editor_state={"__value__": []}, bboxes=box)
    with w.part():
        table = w.node("BuildJsonPromptIdeogram", element=boxes[2], style="photo", **{"style.photo": "35mm"}, **WORDS)
        told = w.node("ConvertDictionaryToString", dictionary=table, indent=2)
    w.capture(table, told)


VALUES: dict[str, Draw] = {
    "numbers at their limits": _numbers,
    "texts of every script": _texts,
    "true, false and a switch": _truth,
    "a choice": _choice,
    "a colour": _colour,
    "curves and histograms": _curves,
    "a range": _ranges,
    "tables as dictionaries": _tables,
}
