"""A kind of its own, ``gain``: multiplies a number. Imported, or named as a plugin, it is known to every level, command and endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import InvalidConfig
from yggdrasill.foundation.kinds import Kind, register_kind

__all__ = ["Gain"]


class Gain:
    """A runnable with input ``x`` and output ``y``, ``factor`` times ``x``; its config is ``{kind: gain, gain_id, factor}``."""

    deterministic = True

    def __init__(self, gain_id: str, factor: float) -> None:
        self.id = gain_id
        self.factor = factor

    def get_input_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """One input, ``x``."""
        return [{"name": "x", **({"dtype": "any", "optional": False} if include_dtype else {})}]

    def get_output_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        """One output, ``y``."""
        return [{"name": "y", **({"dtype": "any"} if include_dtype else {})}]

    def run(self, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Return the product, or nothing for a dry run."""
        return {"y": None if options.get("dry_run") else self.factor * inputs["x"]}

    def to_config(self) -> dict[str, Any]:
        """Return what `build` reads."""
        return {"kind": "gain", "gain_id": self.id, "factor": self.factor}


def build(config: Mapping[str, Any], options: object) -> Gain:
    """Return the runnable of a config.

    Raises:
        InvalidConfig: ``factor`` is no number.
    """
    factor = config.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)):
        raise InvalidConfig(f"gain {config.get('gain_id')!r}: factor must be a number, got {factor!r}")
    return Gain(str(config.get("gain_id", "gain")), factor)


register_kind(Kind("gain", load_class=lambda: Gain, build=build, id_key="gain_id"))
