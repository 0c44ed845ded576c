"""numpy dtypes as text and back, without evaluating anything: simple ones as numpy's own string, structured ones as JSON."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import CodecError, UnsupportedVersion
from yggdrasill.values.payload import corrupt

if TYPE_CHECKING:
    import numpy as np

__all__ = ["dtype_name", "read_dtype"]

_SIMPLE = re.compile(r"[<>|](?:[biufc][0-9]{1,2}|[SUV][0-9]{1,9}|[Mm]8(?:\[[0-9]{0,9}[A-Za-z]{1,2}\])?)")
_EXTENDED = re.compile(r"([<>][fc][0-9]{2}):([0-9]{2,3})")
_DEEPEST = 16


def dtype_name(dtype: np.dtype[Any]) -> str | None:
    """The text of ``dtype``, or None if it has none that gives the same dtype back: objects, metadata, foreign types."""
    if dtype.hasobject or dtype.metadata:
        return None
    form = _form(dtype)
    name = form if isinstance(form, str) else json.dumps(form, separators=(",", ":"))
    try:
        return name if read_dtype(name) == dtype else None
    except CodecError:
        return None


def read_dtype(name: Any) -> np.dtype[Any]:
    """The dtype of `dtype_name`'s text; `CorruptData` for any other, `UnsupportedVersion` for one this machine does not have."""
    if type(name) is not str:
        raise corrupt("a dtype is no text")
    if not name.startswith("{"):
        return _simple(name)
    try:
        return _structured(json.loads(name), _DEEPEST)
    except CodecError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise corrupt(f"a structured dtype cannot be read ({error})") from error


def _form(dtype: np.dtype[Any]) -> Any:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _form(base), "shape": list(shape)}
    if dtype.fields is not None:
        fields = [[name, _form(dtype.fields[name][0]), dtype.fields[name][1]] for name in dtype.names or ()]
        return {"fields": fields, "itemsize": dtype.itemsize}
    if dtype.kind in "fc" and dtype.itemsize > (8 if dtype.kind == "f" else 16):
        # two machines may spell different numbers alike here, so the length of the mantissa is part of the name
        return f"{dtype.str}:{_mantissa(dtype)}"
    return dtype.str


def _mantissa(dtype: np.dtype[Any]) -> int:
    import numpy as np

    return int(np.finfo(dtype).nmant)


def _simple(name: str) -> np.dtype[Any]:
    import numpy as np

    extended = _EXTENDED.fullmatch(name)
    text = extended[1] if extended else name
    if not extended and not _SIMPLE.fullmatch(name):
        raise corrupt(f"{name[:60]!r} is no dtype of numpy")
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError) as error:
        if extended:
            raise _foreign(name) from error
        raise corrupt(f"{name[:60]!r} is no dtype of numpy") from error
    if extended and _mantissa(dtype) != int(extended[2]):
        raise _foreign(name)
    return dtype


def _foreign(name: str) -> UnsupportedVersion:
    return UnsupportedVersion(f"dtype {name!r} is an extended precision that this machine does not have; send float64 instead")


def _structured(form: Any, depth: int) -> np.dtype[Any]:
    import numpy as np

    if isinstance(form, str):
        return _simple(form)
    if not depth:
        raise corrupt(f"a structured dtype is nested deeper than {_DEEPEST}")
    if "base" in form:
        return np.dtype((_structured(form["base"], depth - 1), tuple(form["shape"])))
    fields = form["fields"]
    dtype: np.dtype[Any] = np.dtype(
        {
            "names": [name for name, _, _ in fields],
            "formats": [_structured(inner, depth - 1) for _, inner, _ in fields],
            "offsets": [offset for _, _, offset in fields],
            "itemsize": form["itemsize"],
        }
    )
    return dtype
