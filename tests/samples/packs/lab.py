"""Three ComfyUI servers with third-party packs, and runs of prompts on them: what each showed, saved and reported."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import time
import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samples.comfy import Installation, Server, Servers, make_base_directory
from samples.comfy_graphs import Caller, know
from samples.packs.checkouts import Pack
from samples.packs.files import content_of, output_files, reset_folders, write_inputs, write_models
from samples.page_view import Shown, show

__all__ = ["NAMES", "PacksLab", "Run"]

#: The caller, and the names of its two peers.
NAMES = ("caller", "forge", "mill")
_CHECKPOINT = Path(__file__).resolve().parent.parent.parent / "comfy" / "checkpoint.py"
_CLEAR = {"1": {"class_type": "PacksSource", "inputs": {"kind": "INT"}}, "2": {"class_type": "PacksDump", "inputs": {"value": ["1", 0]}}}
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


@dataclass
class Run:
    """The visible result of a prompt. ``results`` are outputs by node and files by path, flat; ``refused`` are errors before the run.

    ``ended`` is False if the prompt did not end within its time.
    """

    ended: bool = True
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    error: tuple[str, str, str] | None = None
    results: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    remote: bool = False

    @property
    def failure(self) -> object:
        """The errors of the run, comparable with those of another run."""
        return self.error, sorted((node, kind) for node, kind, _ in self.refused)


class PacksLab:
    """The servers, each with the packs in its own base directory. ``loaded`` has the classes of each pack that was imported."""

    def __init__(self, installation: Installation, packs: Sequence[Pack], folder: Path) -> None:
        self.packs = list(packs)
        self._servers = Servers(installation, folder)
        self._flags = ("--preview-method", "none")
        self._jobs: dict[str, str] = {}
        started = [self._launch(folder / name, number) for number, name in enumerate(NAMES)]
        for server in started:
            server.wait_until_ready(timeout=600)
        self.servers: dict[str, Server] = dict(zip(NAMES, started, strict=True))
        know(self.caller, {name: self.servers[name] for name in NAMES[1:]})
        self.info: dict[str, dict[str, Any]] = self.caller.get("/object_info", timeout=120)
        self.version: str = self.caller.get("/system_stats")["system"]["comfyui_version"]
        self.loaded: dict[str, list[str]] = {}
        for name, facts in self.info.items():
            module = str(facts["python_module"])
            if module.startswith("custom_nodes.") and module.split(".", 1)[1] in {pack.name for pack in packs}:
                self.loaded.setdefault(module.split(".", 1)[1], []).append(name)

    def _launch(self, base: Path, number: int) -> Server:
        make_base_directory(base)
        for pack in self.packs:
            _link(pack.folder, base / "custom_nodes" / pack.name)
        shutil.copy(Path(__file__).with_name("probe.py"), base / "custom_nodes" / "packs_probe.py")
        write_inputs(base, number)
        self._script(Path(__file__).with_name("clip.py"), base / "input", number)
        write_models(base, number)
        if number == 0:
            self._script(_CHECKPOINT, base / "models")
        else:
            shutil.copytree(base.parent / NAMES[0] / "models" / "checkpoints", base / "models" / "checkpoints", dirs_exist_ok=True)
        reset_folders(base, number)
        return self._servers.launch(self._flags, base=base)

    def _script(self, script: Path, *arguments: object) -> None:
        done = self._servers.installation.run(script, *map(str, arguments))
        assert done.returncode == 0, f"{script.name} failed:\n{done.stderr[-2000:]}"

    @property
    def caller(self) -> Server:
        return self.servers[NAMES[0]]

    def stop(self) -> None:
        """Stop the servers."""
        self._servers.stop()

    def import_error(self, pack: Pack) -> str | None:
        """Return the last line of the error with which a pack's import failed; None if it was imported."""
        if pack.name in self.loaded:
            return None
        found = re.search(rf"Cannot import \S*{re.escape(pack.name)} module for custom nodes: (.*)", self.caller.printed())
        return found[1].strip() if found else "it has no node classes"

    # -- runs ---------------------------------------------------------------------------------------------------

    def run(
        self, prompt: Mapping[str, Any], extra: Mapping[str, Any], *, seconds: float, peers: Sequence[str] = (), fresh: bool = True
    ) -> Run:
        """Run a prompt with empty folders, for at most ``seconds``; stop it if it does not end. ``fresh`` empties the caches first."""
        self._reset([NAMES[0], *peers], fresh)
        started = time.monotonic()
        try:
            shown = show(self.caller, prompt, extra, seconds=seconds)
        except asyncio.TimeoutError:
            self._stop_everything()
            return Run(ended=False, seconds=time.monotonic() - started)
        took = time.monotonic() - started
        run = self._read(shown)
        run.seconds = took
        for name in peers:
            newest = self._newest(name)
            run.remote |= newest != self._jobs.get(name, "")
            self._jobs[name] = newest
        return run

    def _read(self, shown: Shown) -> Run:
        refused = [
            (str(node), str(error["type"]), self._neutral(f"{error.get('message', '')}: {error.get('details', '')}"))
            for node, facts in (shown.answer.get("node_errors") or {}).items()
            for error in facts["errors"]
        ]
        if shown.status != 200:
            general = shown.answer.get("error") or {}
            return Run(refused=refused or [("", str(general.get("type")), str(general.get("message")))])
        errors = shown.of("execution_error")
        error = None
        if errors:
            last = errors[-1]
            error = (str(last["node_id"]), str(last["exception_type"]), self._neutral(str(last["exception_message"])))
        results: dict[str, Any] = {f"node {node}": self._content(output) for node, output in shown.outputs.items()}
        results |= {f"file {path}": content for path, content in output_files(self.caller.base).items()}
        return Run(refused=refused, error=error, results=results)

    def _neutral(self, text: str) -> str:
        """Return a message without the folder of the server that it came from, and without addresses in memory."""
        for server in self.servers.values():
            text = text.replace(str(server.base), "<base>")
        return _ADDRESS.sub("0x", text).strip()

    def _content(self, value: Any) -> Any:
        """Return ``value`` with each file that it names replaced by the content of the file."""
        if isinstance(value, dict):
            if {"filename", "subfolder", "type"} <= value.keys():
                path = self.caller.base / str(value["type"]) / str(value["subfolder"]) / str(value["filename"])
                return [value["type"], content_of(path)]
            return {key: self._content(item) for key, item in value.items()}
        return [self._content(item) for item in value] if isinstance(value, list) else value

    def _newest(self, name: str) -> str:
        jobs = Caller(self.servers[name]).jobs(limit=1)
        return str(jobs[0]["job_id"]) if jobs else ""

    # -- state of the servers -----------------------------------------------------------------------------------

    def _reset(self, names: Sequence[str], fresh: bool) -> None:
        """Empty the folders and caches of servers. ComfyUI empties its caches after a prompt, so this runs one."""
        waiting = []
        for name in names:
            server = self.servers[name]
            if not server.alive:
                self._restart(name)
            if fresh:
                server.post("/free", {"free_memory": True})
                waiting.append((server, server.post("/prompt", {"prompt": _CLEAR})["prompt_id"]))
        for name in names:
            reset_folders(self.servers[name].base, NAMES.index(name))
        for server, prompt_id in waiting:
            server.wait_for(prompt_id)

    def _stop_everything(self) -> None:
        """Interrupt all servers; restart those that still run something after 10 s."""
        for server in self.servers.values():
            with contextlib.suppress(OSError, urllib.error.URLError):
                server.post("/interrupt", {})
        end = time.monotonic() + 10
        for name, server in self.servers.items():
            while not _is_idle(server):
                if time.monotonic() > end:
                    self._restart(name)
                    break
                time.sleep(0.1)

    def _restart(self, name: str) -> None:
        server = self.servers[name]
        if server.alive:
            server.kill()
        self._servers.start_again(server, *self._flags)


def _link(source: Path, target: Path) -> None:
    if not target.exists():
        target.symlink_to(source, target_is_directory=True)


def _is_idle(server: Server) -> bool:
    try:
        queue = server.get("/queue", timeout=5)
    except (OSError, urllib.error.URLError):
        return not server.alive
    return not queue["queue_running"] and not queue["queue_pending"]
