"""Runs a world or a stage for a node. A world runs pass by pass, shows its newest picture, stops between stages, and can be resumed."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.server_ext.comfy.levels.building import build_placed, config_key
from yggdrasill.server_ext.comfy.levels.node_work import NodeWork
from yggdrasill.server_ext.comfy.levels.states import check_no_gaps, parse_state, state_pictures
from yggdrasill.server_ext.comfy.levels.world_folder import RunFolder
from yggdrasill.stage import State
from yggdrasill.world import World
from yggdrasill.world.storage import Progress

__all__ = ["WorldCall", "WorldResult", "actions_of", "run_stage", "run_world"]

_DIVIDER = "---"
_THUMBNAIL_SIZE = 512


@dataclass(frozen=True)
class WorldCall:
    """The inputs of a Run World node. With ``keep`` the run is stored, so that it can be resumed after an interrupt."""

    config: Mapping[str, Any]
    state: Any
    actions: Sequence[str | None]
    steps: int
    seed: int | None
    keep: bool

    @property
    def key(self) -> str:
        """Return a digest that is equal for equal calls."""
        from yggdrasill.values import dumps

        digest = hashlib.blake2b(dumps([self.state, list(self.actions), self.steps, self.seed]), digest_size=16)
        digest.update(config_key({name: part for name, part in self.config.items() if name != "storage"}).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


@dataclass
class WorldResult:
    """The last state, and the pictures after each pass of this run."""

    state: State
    pictures: list[Any] = field(default_factory=list)


def actions_of(text: str) -> list[str | None]:
    """Return one action per pass. A line of three hyphens separates them; a blank action is None."""
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip() == _DIVIDER:
            parts.append([])
        else:
            parts[-1].append(line)
    return ["\n".join(part).strip() or None for part in parts]


def run_world(work: NodeWork[WorldResult], call: WorldCall) -> WorldResult:
    """Run the passes of a call. The last state equals that of the same run in Python, also if the run was interrupted and resumed.

    Raises:
        InvalidArgument, InvalidState, StorageFailed, Cancelled. Also the errors of `World.run`.
    """
    if call.steps < 0:
        raise InvalidArgument(f"steps must be at least 0, got {call.steps}.")
    if len(call.actions) > max(call.steps, 1):
        raise InvalidArgument(f"Got {len(call.actions)} actions for {call.steps} passes. Write one action, or one per pass.")
    start = parse_state(call.state)
    folder = RunFolder(str(call.config.get("world_id", "world")), call.key) if call.keep else None
    with folder.lock(work.token) if folder else nullcontext():
        world = build_placed(call.config)
        if isinstance(world, World):
            check_no_gaps(start, world)
        resume_from = folder.interrupted_progress() if folder else None
        if folder and resume_from is None:
            folder.begin(call.config)
        result = _Passes(work, call, world, folder, start, resume_from).run()
        if folder:
            folder.finish()
        return result


class _Passes:
    """The passes of one run, from the beginning or resumed."""

    def __init__(
        self, work: NodeWork[Any], call: WorldCall, world: Any, folder: RunFolder | None, start: State | None, resume_from: Progress | None
    ) -> None:
        self._work = work
        self._call = call
        self._world = world
        self._folder = folder
        self._start = start
        self._resume_from = resume_from
        self._done = 0 if resume_from is None else resume_from.passes - (start.passes if start else 0)
        self._shown: Any = None

    def run(self) -> WorldResult:
        result = WorldResult((self._resume_from.state if self._resume_from else self._start) or State())
        cycle = list(self._world.cycle) or [""]
        self._work.meter.begin(self._call.steps * len(cycle), self._done * len(cycle))
        self._show_status("")
        for state in self._states():
            self._done += 1
            result.state = state
            result.pictures += state_pictures(state)
        return result

    def _states(self) -> Iterator[State]:
        call, world = self._call, self._world
        # A run that stopped after Environment has applied the action of the pass that it completes.
        applied = self._done + int(self._resume_from is not None and self._resume_from.following is not None and isinstance(world, World))
        actions, steps = list(call.actions)[applied:], call.steps - self._done
        state = self._start if self._resume_from is None else None
        if isinstance(world, World):
            if self._folder is not None:
                world.set_storage(self._folder.storage(resume=self._resume_from is not None))
            else:
                world.set_storage(None)
            yield from world.run(state, action=actions or None, num_steps=steps, seed=call.seed, callbacks=self._on_stage, iterate=True)
            return
        # a world that an endpoint serves keeps the content of its last run; a new run starts with that of the config
        initial = self._start or State(content=copy.deepcopy(dict(call.config.get("initial_world") or {})))
        state = self._resume_from.resume_state() if self._resume_from is not None else initial
        storage = self._folder.storage(resume=False) if self._folder is not None else None
        for number in range(steps):
            action = actions[number] if number < len(actions) else None
            state = world.run(state, action=action, num_steps=1, seed=call.seed)
            if storage is not None:
                storage.save_last(str(call.config.get("world_id", "world")), state)
            self._work.meter.step(len(world.cycle))
            self._show(state)
            yield state

    def _on_stage(self, stage_id: str, phase: str, **facts: Any) -> None:
        if phase == "before":
            self._show_status(f" · {stage_id}")
        elif phase in ("after", "skipped"):
            self._work.meter.step()
        if phase == "after":
            self._show(facts["state_after"])

    def _show_status(self, suffix: str) -> None:
        self._work.messages.show_text(f"pass {min(self._done + 1, max(self._call.steps, 1))} of {self._call.steps}{suffix}")

    def _show(self, state: State) -> None:
        if state[3] is self._shown:
            return
        self._shown = state[3]
        pictures = state_pictures(state.loaded())
        if pictures:
            self._work.messages.show_image("JPEG", _jpeg(pictures[0]))


def _jpeg(picture: Any) -> bytes:
    """Encode the first of the pictures [batch, height, width, channels] as a JPEG of at most 512 pixels on a side."""
    from PIL import Image

    pixels = (picture[0, ..., :3].clamp(0.0, 1.0) * 255.0).round().byte().cpu()
    grey = pixels.shape[-1] < 3
    image = Image.fromarray((pixels[..., 0] if grey else pixels).numpy())
    image.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def run_stage(work: NodeWork[State], config: Mapping[str, Any], state: Any, action: str, seed: int | None) -> State:
    """Run a stage on a state if its execution condition holds, and return the resulting state.

    Raises:
        As `Stage.run`.
    """
    stage = build_placed(config)
    before = parse_state(state) or State()
    work.meter.begin(1)
    if not stage.should_run(before):
        return before
    after: State = stage.run(before, action=action.strip() or None, seed=seed)
    return after.loaded()
