"""Which urls lie below which: a credential is sent below the prefix it is bound to and nowhere else."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

__all__ = ["is_below"]


def is_below(url: str, prefix: str) -> bool:
    """Whether ``url`` lies at or below ``prefix``: same scheme, host and port, and a path that continues it at a slash."""
    try:
        given, bound = urlsplit(url), urlsplit(prefix)
        origins = [(part.scheme, part.hostname, part.port or {"http": 80, "https": 443}.get(part.scheme)) for part in (given, bound)]
    except ValueError:
        return False
    base, path = bound.path.rstrip("/"), given.path
    return (
        origins[0] == origins[1]
        and "@" not in given.netloc
        and (path == base or path.startswith(base + "/"))
        and ".." not in unquote(path).split("/")
    )
