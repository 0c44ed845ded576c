"""The settings of an endpoint inside ComfyUI: ``settings.yaml`` in its data folder, each key optional."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options
from yggdrasill.foundation.config import read_document
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.server_ext.comfy.runner import POLICIES

__all__ = ["ComfySettings"]


@dataclass(frozen=True)
class ComfySettings:
    """The keys of ``settings.yaml``.

    ``queue`` orders jobs relative to the owner's prompts. ``model_sources`` are URL prefixes from which callers may have model files fetched,
    each at most ``model_limit`` GiB. ``artifact_quota`` is in GiB. ``patience`` and ``first_patience`` are the seconds for which a lost endpoint,
    and one that has not answered the call yet, are tried again. The other keys are those of ``yggdrasill serve``.
    """

    queue: str = "fifo"
    slots: int = 1
    allow_hosts: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    peer_url: str | None = None
    artifacts: str | None = None
    share_folder: bool = True
    artifact_quota: float | None = None
    model_sources: tuple[str, ...] = ()
    model_limit: float = 64.0
    patience: float = RetryPolicy.later
    first_patience: float = RetryPolicy.first

    @classmethod
    def read(cls, file: Path) -> ComfySettings:
        """Read the settings from a file, or return the defaults if it does not exist.

        Raises:
            InvalidConfig
        """
        return cls.from_dict(read_document(file), str(file)) if file.exists() else cls()

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], where: str) -> ComfySettings:
        """Build the settings from a mapping. ``where`` names its source in messages.

        Raises:
            InvalidConfig
        """
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(map(str, document)) - set(names))
        if unknown:
            raise InvalidConfig(f"{where}: unknown keys {format_options(unknown)}. Available: {format_options(names)}.")
        facts = dict(document)
        for name in ("allow_hosts", "peers", "model_sources"):
            listed = facts.get(name, ())
            if not isinstance(listed, (list, tuple)) or not all(isinstance(item, str) for item in listed):
                raise InvalidConfig(f"{where}: {name!r} must be a list of strings, got {listed!r}")
            facts[name] = tuple(listed)
        slots = facts.get("slots", 1)
        if facts.get("queue", "fifo") not in POLICIES or isinstance(slots, bool) or not isinstance(slots, int) or slots < 1:
            raise InvalidConfig(
                f"{where}: 'queue' must be one of {format_options(POLICIES)} and 'slots' an integer of at least 1; got {facts.get('queue')!r} and {slots!r}"
            )
        if any(facts.get(name) is not None and not isinstance(facts[name], str) for name in ("peer_url", "artifacts")):
            raise InvalidConfig(f"{where}: 'peer_url' and 'artifacts' must be strings")
        if not isinstance(facts.get("share_folder", True), bool):
            raise InvalidConfig(f"{where}: 'share_folder' must be true or false, got {facts['share_folder']!r}")
        for name in ("artifact_quota", "model_limit"):
            if name in facts and not _is_amount(facts[name]) and (name, facts[name]) != ("artifact_quota", None):
                raise InvalidConfig(f"{where}: {name!r} must be a positive number of GiB, got {facts[name]!r}")
        for name in ("patience", "first_patience"):
            if name in facts and not _is_amount(facts[name], least=0.0):
                raise InvalidConfig(f"{where}: {name!r} must be a number of seconds from 0 on, got {facts[name]!r}")
        invalid = [source for source in facts["model_sources"] if not source.startswith(("http://", "https://"))]
        if invalid:
            raise InvalidConfig(
                f"{where}: 'model_sources' must be URLs such as https://huggingface.co/Comfy-Org, got {format_options(invalid)}"
            )
        return cls(**facts)


def _is_amount(value: object, least: float = 1e-6) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and least <= value < 1e6
