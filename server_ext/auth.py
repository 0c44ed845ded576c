"""Who may speak to this endpoint: the token, and the Host and Origin a request must carry.

A page in a browser can make that browser send requests here, and a name under its control can point here; Host and Origin
are checked against that, the token against everybody else.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from yggdrasill.errors import AccessDenied, InvalidArgument, StorageFailed

__all__ = ["TOKEN_VARIABLE", "Guard", "keep_secret", "resolve_token"]

TOKEN_VARIABLE = "YGGDRASILL_TOKEN"  # noqa: S105 - the variable's name
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EVERY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound to
_SHORTEST = 8


def keep_secret(path: Path) -> str:
    """The secret in the file ``path``, made at first use, readable by this user only.

    Raises:
        StorageFailed: the file cannot be read or written, or is empty.
    """
    try:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
        if os.name == "posix" and path.stat().st_mode & 0o077:
            path.chmod(0o600)
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageFailed(
            f"cannot keep a secret in {str(path)!r}: {error}; check the folder and its permissions", path=str(path)
        ) from error
    if not text:
        raise StorageFailed(f"{str(path)!r} is empty; delete it, and a new secret is made at the next start", path=str(path))
    return text


def resolve_token(data_dir: Path, given: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """The endpoint's token: the given one, else ``YGGDRASILL_TOKEN``, else the one in ``data_dir/token``, made at first use.

    Raises:
        InvalidArgument: a token that is too short or not plain text of one line.
        StorageFailed
    """
    token = given or environment.get(TOKEN_VARIABLE) or keep_secret(data_dir / "token")
    if len(token) < _SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidArgument(
            f"the token must be at least {_SHORTEST} printable ASCII characters without spaces; let the endpoint make one"
        )
    return token


class Guard:
    """Lets requests in, or says why not.

    ``hosts`` are the names, besides the loopback ones, under which this endpoint is reached, with or without a port. If one is
    ``0.0.0.0`` or ``::``, it listens on every address of its machine, and any literal address is let in: no name can be made to point
    here by it, which is what the check of names is against.
    """

    def __init__(self, token: str, hosts: Iterable[str] = ()) -> None:
        self._token = token.encode("ascii")
        named = {host.strip() if host.strip() in _EVERY_ADDRESS else _host_name(host) for host in hosts}
        self._hosts = {*_LOOPBACK, *(named - set(_EVERY_ADDRESS))}
        self._any_address = not named.isdisjoint(_EVERY_ADDRESS)

    def check_source(self, host: str | None, origin: str | None, fetch_site: str | None) -> None:
        """Raise `AccessDenied` unless the request names this endpoint and no foreign page made it."""
        name = _host_name(host or "")
        if name not in self._hosts and not (self._any_address and _is_address(name)):
            raise AccessDenied(
                f"this endpoint is not reached as {name[:100]!r}; its owner can add the name with --allow-host", reason="host"
            )
        if origin is not None and _host_and_port(urlsplit(origin).netloc if "://" in origin else "") != _host_and_port(host or ""):
            raise AccessDenied(f"pages of {origin[:100]!r} may not use this endpoint", reason="origin")
        if fetch_site not in (None, "same-origin", "none"):
            raise AccessDenied("pages of other sites may not use this endpoint", reason="origin")

    def check_token(self, authorization: str | None) -> None:
        """Raise `AccessDenied` unless the header ``Authorization`` bears the token."""
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise AccessDenied("a token is needed; send it as 'Authorization: Bearer TOKEN'", reason="token")
        if not hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token):
            raise AccessDenied("the token is wrong; the endpoint's owner finds the right one in its data folder", reason="token")


def _host_and_port(text: str) -> str:
    return text.strip().lower()


def _is_address(name: str) -> bool:
    """Whether a name is the address of one machine."""
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return not address.is_unspecified and not address.is_multicast


def _host_name(text: str) -> str:
    """``text`` (a Host header, an address or a url) without scheme, port and brackets."""
    try:
        return (
            urlsplit(text if "://" in text else f"//{text}" if text.count(":") < 2 or text.startswith("[") else f"//[{text}]").hostname
            or ""
        ).lower()
    except ValueError:
        return ""
