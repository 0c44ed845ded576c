"""`text/chronicle`: the world update, which records the episode."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, ClassVar

from yggdrasill.blocks.text.chance import invent_name
from yggdrasill.blocks.text.episodes import episode_of, last_episode, measures_of, require_mapping
from yggdrasill.foundation import AbstractBaseBlock, Port, PortDirection, PortType

__all__ = ["Chronicle"]


class Chronicle(AbstractBaseBlock):
    """Applies a full state to the world's content and returns the new content; the old content is unchanged.

    In: ``content`` dict (may be absent or empty) and the five blocks ``happening``, ``configuration``, ``artifacts``,
    ``description``, ``account``. Out: ``world``: the old content, with ``chronicle`` one entry longer (``episode``,
    ``happening``, ``configuration``, ``description``, ``measures``, ``account``, and ``images``, the shapes of the pictures; the
    pictures themselves stay in the snapshot), ``places`` with the names that the account introduced or confirmed, and
    a ``title`` if it had none.
    """

    block_type = "text/chronicle"
    deterministic: ClassVar[bool] = True
    settings = ()

    def declare_ports(self) -> Iterable[Port]:
        yield Port("content", PortDirection.IN, PortType.DICT, optional=True)
        for name in ("happening", "configuration", "artifacts", "description", "account"):
            yield Port(name, PortDirection.IN, PortType.ANY)
        yield Port("world", PortDirection.OUT, PortType.DICT)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        world = copy.deepcopy(dict(require_mapping(inputs.get("content"), "content", self.block_type)))
        happening, account = inputs["happening"], inputs["account"]
        last = last_episode(world)
        episode = max(episode_of(happening, world), int(last.get("episode", 0)) + 1)
        entry: dict[str, Any] = {"episode": episode}
        for name in ("happening", "configuration", "description", "account"):
            entry[name] = copy.deepcopy(inputs[name])
        entry["measures"] = copy.deepcopy(dict(measures_of(inputs["description"])))
        entry["images"] = _shapes(inputs["artifacts"])
        world["chronicle"] = [*(world.get("chronicle") or []), entry]
        if isinstance(account, dict) and account.get("places"):
            named = {place["name"]: place for place in [*(world.get("places") or []), *copy.deepcopy(account["places"])]}
            world["places"] = list(named.values())
        if not world.get("title"):
            world["title"] = f"The Chronicle of {invent_name('world', entry['configuration'], entry['happening'])}"
        return {"world": world}


def _shapes(artifacts: Any) -> list[list[int]]:
    images = artifacts.get("images") if isinstance(artifacts, dict) else None
    return [list(image.shape) for image in images or []]
