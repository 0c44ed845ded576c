"""Creates, edits and describes serialized states for nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from yggdrasill.errors import InvalidState, format_options
from yggdrasill.server_ext.comfy.levels.graph_ports import pictures_of
from yggdrasill.server_ext.comfy.levels.host_paths import read_mapping
from yggdrasill.stage import State
from yggdrasill.stage.state import BLOCKS, is_filled
from yggdrasill.world.world import CANONICAL_CYCLE, World

__all__ = ["check_no_gaps", "chronicle_text", "edit_state", "parse_state", "state_pictures", "state_text"]


def parse_state(state: Any) -> State | None:
    """Return the state in its serialized form, or None for None.

    Raises:
        InvalidState: the value is not a serialized state.
    """
    if state is None:
        return None
    if not isinstance(state, Mapping) or "blocks" not in state:
        raise InvalidState(f"Expected the state of a State or Run World node, got {type(state).__name__}.")
    return State.from_dict(state)


def edit_state(state: Any, edits: str, blocks: Mapping[int, Any]) -> dict[str, Any]:
    """Return the serialized state with changed blocks and fields.

    ``edits`` is YAML by number or name, where null empties a block; the linked ``blocks`` override it.

    Raises:
        InvalidState, InvalidConfig
    """
    edited = read_mapping(edits, "edits of the state")
    changes: dict[Any, Any] = {}
    for key, value in edited.items():
        name = str(key).removeprefix("block_")
        changes[int(name) if name.isdecimal() else name] = value
    content = {"content": changes.pop("content")} if "content" in changes else {}
    linked = {number: value for number, value in blocks.items() if value is not None}
    before = parse_state(state) or State()
    return before.replace({**changes, **linked}, **content).to_dict()


def check_no_gaps(state: State | None, world: World) -> None:
    """Raise `InvalidState` if the blocks of a state for a canonical world are not filled from 1 on without a gap.

    Only Environment would run on such a state, and it would discard it.
    """
    roles = {world.role_of(stage_id) for stage_id in world.stages} if isinstance(world, World) else set()
    if state is None or not roles >= set(CANONICAL_CYCLE):
        return
    filled = state.filled_blocks
    missing = [number for number in BLOCKS[: len(filled)] if number not in filled]
    if missing:
        later = [number for number in filled if number > missing[0]]
        raise InvalidState(
            f"The state has a gap: block {format_options(map(str, missing))} is empty and {format_options(map(str, later))} is filled, so no stage would "
            "continue from it and it would be lost. Fill the earlier blocks, or empty the later ones with a State node."
        )


def state_pictures(state: State) -> list[Any]:
    """Return the pictures in block 3."""
    return pictures_of(state[3])


def state_text(state: State) -> str:
    """Return the newest text of a state: block 5 (what happened), else 4 (the description), else 1 (what should happen)."""
    return next((text for number in (5, 4, 1) if (text := _text(state[number]))), "")


def chronicle_text(content: Any) -> str:
    """Return a world's content as text: its title and story, and each episode with its description and outcome."""
    if not isinstance(content, Mapping):
        return ""
    parts = [str(content["title"])] if content.get("title") else []
    story = content.get("story") or content.get("initial_story")
    parts += [str(story)] if story else []
    for entry in content.get("chronicle") or ():
        if isinstance(entry, Mapping):
            parts.append("\n".join(_episode(entry)))
    return "\n\n".join(parts)


def _episode(entry: Mapping[str, Any]) -> Iterable[str]:
    happening = entry.get("happening")
    title = happening.get("title") if isinstance(happening, Mapping) else None
    yield f"{entry.get('episode', '')}. {title or 'Episode'}".strip()
    yield from (text for name in ("happening", "description", "account") if (text := _text(entry.get(name))))


def _text(value: Any) -> str:
    if not is_filled(value):
        return ""
    text = value.get("text") or value.get("words") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else ""
