"""`text/join`: several texts joined to one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from yggdrasill.blocks.text.episodes import text_of
from yggdrasill.foundation import AbstractBaseBlock, ConfigField, Port, PortAggregation, PortDirection, PortType

__all__ = ["Join"]


class Join(AbstractBaseBlock):
    """Joins the texts of its edges in the order in which the edges were added.

    In: ``parts``, any number of edges; each value is a text, a dict with ``text``, or a list of these. Out: ``text``.
    Config: ``separator`` (default a blank line). Empty parts are omitted.
    """

    block_type = "text/join"
    deterministic: ClassVar[bool] = True
    settings = (ConfigField("separator", "text", "\n\n", meaning="separator between two texts"),)

    def declare_ports(self) -> Iterable[Port]:
        yield Port("parts", PortDirection.IN, PortType.ANY, aggregation=PortAggregation.DICT)
        yield Port("text", PortDirection.OUT, PortType.TEXT)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        separator = self.setting("separator")
        return {"text": separator.join(part for part in _texts(inputs["parts"]) if part.strip())}


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping) and "text" not in value:
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
    else:
        yield text_of(value)
