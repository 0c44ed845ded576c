"""Calls of git, which run no hooks, ask for no password and follow no other protocol than allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from yggdrasill.errors import EndpointUnreachable, StorageFailed, UnsupportedFormat

__all__ = ["GitRefused", "head", "is_checkout", "resolve", "run_git"]

_LOCAL_S = 60.0
_OPTIONS = ("-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "credential.interactive=false")
"""A volume may belong to another user; its repositories must not run programs."""


class GitRefused(Exception):
    """A call of git that failed; the text is the last line of its output."""


def run_git(*arguments: str, folder: Path | None = None, allow_private: bool = False, timeout: float = _LOCAL_S) -> str:
    """Return the output of git in ``folder``. ``allow_private`` allows plain http and folders of this machine as repositories.

    Raises:
        GitRefused: git failed. UnsupportedFormat: git is not installed. EndpointUnreachable: it took longer than ``timeout``.
    """
    program = shutil.which("git")
    if program is None:
        raise UnsupportedFormat("git is not installed; custom nodes are checked out with it. Install it.")
    environment = {
        **os.environ,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "SSH_ASKPASS": "",
        "GIT_ALLOW_PROTOCOL": "https:http:file" if allow_private else "https",
        "LC_ALL": "C",
    }
    command = [program, *_OPTIONS, *(("-C", str(folder)) if folder is not None else ()), *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - git itself, with checked arguments
            command, capture_output=True, timeout=timeout, env=environment, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise EndpointUnreachable(f"git {arguments[0]} took longer than {timeout:g} s. Check the network.") from error
    except OSError as error:
        raise StorageFailed(f"Cannot run git: {error.strerror or error}.") from error
    if done.returncode:
        lines = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        marked = [line for line in lines if line.startswith(("fatal:", "error:"))]
        raise GitRefused((marked or lines or [f"exit code {done.returncode}"])[-1][:300])
    return done.stdout.decode("utf-8", "replace").strip()


def is_checkout(folder: Path) -> bool:
    """Return whether a folder is the root of a git checkout, and not only inside of one."""
    return (folder / ".git").exists()


def head(folder: Path) -> str:
    """Return the commit that is checked out.

    Raises:
        GitRefused. Otherwise as `run_git`.
    """
    return run_git("rev-parse", "--verify", "HEAD^{commit}", folder=folder)


def resolve(folder: Path, revision: str) -> str | None:
    """Return the commit of a tag, branch or commit that the checkout knows, else None. A tag has precedence over a branch."""
    for name in (f"refs/tags/{revision}", f"refs/remotes/origin/{revision}", f"refs/heads/{revision}", revision):
        try:
            return run_git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", folder=folder)
        except GitRefused:
            continue
    return None
