"""ComfyUI servers for benchmarks, each with its own base directory, the benchmark's nodes, and the packs of a measurement."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from samples.comfy import Installation, Server, Servers, find_installation, make_base_directory

__all__ = ["CHECKPOINT", "Fleet", "Installation", "Server", "comfy_version", "find_installation", "open_fleet"]

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = "tiny.ckpt"
_WRITES_MODELS = ROOT / "tests" / "comfy" / "checkpoint.py"


@dataclass(frozen=True)
class Fleet:
    """Starts servers of one installation below one folder."""

    servers: Servers

    def prepare(
        self,
        name: str,
        *flags: str,
        packs: Sequence[Path] = (),
        ours: bool = True,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Server:
        """Start a server; wait for it with ``wait_until_ready``.

        Packs are copied, because some write into their own folder; ``settings`` are the settings of our endpoint.
        """
        base = make_base_directory(self.servers.folder / name, pack=ours)
        for pack in (Path(__file__).parent / "comfy_pack", *packs):
            shutil.copytree(pack, base / "custom_nodes" / pack.name, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        if settings is not None:
            data = base / "user" / "yggdrasill"
            data.mkdir(parents=True)
            (data / "settings.yaml").write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
        return self.servers.launch(flags, pack=ours, environment=environment, base=base)

    def wait(self) -> None:
        """Return when every started server is ready."""
        for server in self.servers:
            server.wait_until_ready()

    def write_checkpoint(self, *servers: Server) -> None:
        """Write the small checkpoint of the tests to the servers as `CHECKPOINT`."""
        first, *others = (server.base / "models" for server in servers)
        done = self.servers.installation.run(_WRITES_MODELS, str(first))
        if done.returncode:
            raise RuntimeError(f"the checkpoint could not be written:\n{done.stderr[-2000:]}")
        for models in others:
            shutil.copytree(first / "checkpoints", models / "checkpoints", dirs_exist_ok=True)


@contextmanager
def open_fleet(installation: Installation, folder: Path) -> Iterator[Fleet]:
    """Open a group of servers that stop at the end of the block."""
    servers = Servers(installation, folder)
    try:
        yield Fleet(servers)
    finally:
        servers.stop()


def comfy_version(installation: Installation) -> str:
    """Return the version of ComfyUI from its version file."""
    code = "import runpy; print(runpy.run_path('comfyui_version.py')['__version__'])"
    done = subprocess.run(
        [str(installation.python), "-c", code], cwd=installation.folder, check=True, capture_output=True, encoding="utf-8"
    )
    return done.stdout.strip()
