"""Real git repositories in temporary folders."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

__all__ = ["GitRepository"]


class GitRepository:
    """A repository with commits that a test makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--initial-branch", "main")
        self.url = folder.as_uri()

    def git(self, *arguments: str) -> str:
        """Return the output of git in the repository."""
        identity = {f"GIT_{who}_{what}": f"{who}@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        command = ["git", "-c", "protocol.file.allow=always", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True, env={**os.environ, **identity})
        return done.stdout.strip()

    def commit(self, name: str = "__init__.py", text: str = "NODE_CLASS_MAPPINGS = {}\n") -> str:
        """Write a file, commit it and return the commit."""
        (self.folder / name).write_text(text, encoding="utf-8")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", f"change {name}")
        return self.git("rev-parse", "HEAD")
