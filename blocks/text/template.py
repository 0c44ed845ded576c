"""`text/template`: text with slots."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation import AbstractBaseBlock, ConfigField, Port, PortDirection, PortType

__all__ = ["Template"]

_PIECE = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}|[{}]")


class Template(AbstractBaseBlock):
    """Fills a text with its inputs, one input port per slot.

    Config: ``template``, such as ``"A map of {place}, {style}"``; ``{{`` and ``}}`` are braces. A slot is a plain name without
    attributes, indices and format codes, so untrusted templates are safe to fill. Out: ``text``. A slot with an
    entry in the config's ``defaults`` needs no edge.

    Raises:
        InvalidArgument: a missing template, a stray brace, or a slot with the name of the output.
    """

    block_type = "text/template"
    deterministic: ClassVar[bool] = True
    settings = (ConfigField("template", "text", None, meaning="text with slots such as {place}; each slot is an input"),)

    def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(block_id, config=config)
        template = self.config.get("template")
        if not isinstance(template, str):
            raise InvalidArgument(f"{self.block_type}: config 'template' is {template!r}; expected a text with slots such as {{name}}")
        self._template = template
        self._slots: list[str] = []
        for match in _PIECE.finditer(template):
            if match[0] in "{}":
                raise InvalidArgument(
                    f"{self.block_type}: stray {match[0]!r} at character {match.start()} of the template; write a slot as {{name}}, a brace twice"
                )
            if match[1] == "text":
                raise InvalidArgument(f"{self.block_type}: slot {{text}} has the name of the output port; give the slot another name")
            if match[1] and match[1] not in self._slots:
                self._slots.append(match[1])

    def declare_ports(self) -> Iterable[Port]:
        defaults = self.config.get("defaults", {})
        for slot in self._slots:
            yield Port(slot, PortDirection.IN, PortType.ANY, optional=slot in defaults)
        yield Port("text", PortDirection.OUT, PortType.TEXT)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        values = {**self.config.get("defaults", {}), **inputs}

        def fill(match: re.Match[str]) -> str:
            return str(values[match[1]]) if match[1] else match[0][0]

        return {"text": _PIECE.sub(fill, self._template)}
