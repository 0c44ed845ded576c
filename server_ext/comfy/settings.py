"""How the endpoint inside a ComfyUI is set up: ``settings.yaml`` in its data folder, every line of it optional."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidConfig, choices
from yggdrasill.foundation.documents import read_document
from yggdrasill.server_ext.comfy.runner import POLICIES

__all__ = ["ComfySettings"]


@dataclass(frozen=True)
class ComfySettings:
    """``queue`` is how jobs stand to the owner's prompts; the others are those of ``yggdrasill serve``."""

    queue: str = "fifo"
    slots: int = 1
    allow_hosts: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    peer_url: str | None = None
    artifacts: str | None = None

    @classmethod
    def read(cls, file: Path) -> ComfySettings:
        """From a file; one that is not there says nothing.

        Raises:
            InvalidConfig
        """
        return cls.from_dict(read_document(file), str(file)) if file.exists() else cls()

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], where: str) -> ComfySettings:
        """From ``{"queue", "slots", "allow_hosts", "peers", "peer_url", "artifacts"}``.

        Raises:
            InvalidConfig
        """
        names = ("queue", "slots", "allow_hosts", "peers", "peer_url", "artifacts")
        stray = sorted(set(map(str, document)) - set(names))
        if stray:
            raise InvalidConfig(f"{where}: there is {choices(stray)}; it takes {choices(names)}")
        facts = dict(document)
        for name in ("allow_hosts", "peers"):
            listed = facts.get(name, ())
            if not isinstance(listed, (list, tuple)) or not all(isinstance(item, str) for item in listed):
                raise InvalidConfig(f"{where}: {name!r} is a list of texts, got {listed!r}")
            facts[name] = tuple(listed)
        slots = facts.get("slots", 1)
        if facts.get("queue", "fifo") not in POLICIES or isinstance(slots, bool) or not isinstance(slots, int) or slots < 1:
            raise InvalidConfig(
                f"{where}: 'queue' is {choices(POLICIES)} and 'slots' a number from 1 on; got {facts.get('queue')!r} and {slots!r}"
            )
        if any(facts.get(name) is not None and not isinstance(facts[name], str) for name in ("peer_url", "artifacts")):
            raise InvalidConfig(f"{where}: 'peer_url' and 'artifacts' are texts")
        return cls(**facts)
