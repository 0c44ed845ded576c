"""Request authorization: the token, the checks of Host and Origin, and signed artifact urls.

The token keeps out other clients. The checks of Host and Origin keep out web pages: a page can make a browser send requests to this
endpoint, and its owner can point a DNS name here.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from yggdrasill.errors import AccessDenied, InvalidArgument, StorageFailed

__all__ = ["LIFETIME", "TOKEN_VARIABLE", "Guard", "Signer", "load_or_create_secret", "resolve_token"]

TOKEN_VARIABLE = "YGGDRASILL_TOKEN"  # noqa: S105 - the variable's name
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EVERY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound to
_MIN_TOKEN_LENGTH = 8
LIFETIME = 3600
"""Seconds for which a signed url is valid."""
_INVALID_EXPIRY = 1 << 40


def load_or_create_secret(path: Path) -> str:
    """Return the secret in the file ``path``; create it on first use. Only this user can read the file.

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
            f"Cannot read or write the secret file {str(path)!r}: {error}. Check the folder and its permissions.", path=str(path)
        ) from error
    if not text:
        raise StorageFailed(f"The secret file {str(path)!r} is empty. Delete it; the next start creates a new secret.", path=str(path))
    return text


def resolve_token(data_dir: Path, given: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """Return the token: ``given``, else ``YGGDRASILL_TOKEN``, else the file ``data_dir/token``, created on first use.

    Raises:
        InvalidArgument: the token is too short or contains other characters than printable ASCII.
        StorageFailed: as `load_or_create_secret`.
    """
    token = given or environment.get(TOKEN_VARIABLE) or load_or_create_secret(data_dir / "token")
    if len(token) < _MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidArgument(
            f"The token must have at least {_MIN_TOKEN_LENGTH} printable ASCII characters without spaces. Leave it unset to generate one."
        )
    return token


class Guard:
    """Checks Host, Origin and token of requests.

    ``hosts`` are the names, in addition to the loopback names, under which clients reach this endpoint, with or without a port. If one
    is ``0.0.0.0`` or ``::``, the endpoint listens on all addresses and accepts any literal IP address as Host: DNS rebinding needs a name.
    """

    def __init__(self, token: str, hosts: Iterable[str] = ()) -> None:
        self._token = token.encode("ascii")
        named = {host.strip() if host.strip() in _EVERY_ADDRESS else _host_name(host) for host in hosts}
        self._hosts = {*_LOOPBACK, *(named - set(_EVERY_ADDRESS))}
        self._any_address = not named.isdisjoint(_EVERY_ADDRESS)

    def check_source(self, host: str | None, origin: str | None, fetch_site: str | None) -> None:
        """Raise `AccessDenied` unless Host names this endpoint and the request does not come from a page of another site."""
        name = _host_name(host or "")
        if name not in self._hosts and not (self._any_address and _is_address(name)):
            raise AccessDenied(f"Host {name[:100]!r} is not allowed. The endpoint's owner can add it with --allow-host.", reason="host")
        if origin is not None and _host_and_port(urlsplit(origin).netloc if "://" in origin else "") != _host_and_port(host or ""):
            raise AccessDenied(f"Pages of {origin[:100]!r} may not use this endpoint.", reason="origin")
        if fetch_site not in (None, "same-origin", "none"):
            raise AccessDenied("Pages of other sites may not use this endpoint.", reason="origin")

    def check_token(self, authorization: str | None) -> None:
        """Raise `AccessDenied` unless the header ``Authorization`` contains the token."""
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise AccessDenied("A token is required. Send it as 'Authorization: Bearer TOKEN'.", reason="token")
        if not hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token):
            raise AccessDenied("The token is wrong. The endpoint's owner finds the right one in its data folder.", reason="token")


def _host_and_port(text: str) -> str:
    return text.strip().lower()


def _is_address(name: str) -> bool:
    """Return whether a name is the literal IP address of one machine."""
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return not address.is_unspecified and not address.is_multicast


def _host_name(text: str) -> str:
    """Return the host in a Host header, an address or a url, in lower case, without scheme, port and brackets."""
    try:
        return (
            urlsplit(text if "://" in text else f"//{text}" if text.count(":") < 2 or text.startswith("[") else f"//[{text}]").hostname
            or ""
        ).lower()
    except ValueError:
        return ""


class Signer:
    """Signs artifact urls, so that another endpoint can fetch one artifact for a limited time without this endpoint's token.

    The query parameters are ``exp`` and ``sig``: an HMAC-SHA256 over the method, the hash and the expiry.
    """

    def __init__(self, key: str, peer_url: str | None) -> None:
        self._key = key.encode("utf-8")
        self.peer_url = peer_url.rstrip("/") if peer_url else None

    def url(self, artifact: str) -> str | None:
        """Return the signed url of ``artifact``, or None while ``peer_url`` is unknown."""
        if self.peer_url is None:
            return None
        expires = int(time.time()) + LIFETIME
        return f"{self.peer_url}/yggdrasill/v1/artifacts/{artifact}?exp={expires}&sig={self._sign(artifact, expires)}"

    def check(self, artifact: str, expires: str, signature: str) -> None:
        """Raise `AccessDenied` unless the signature matches and has not expired."""
        timestamp = int(expires) if expires.isascii() and expires.isdigit() and len(expires) < 13 else _INVALID_EXPIRY
        right = hmac.compare_digest(signature.encode("utf-8", "replace"), self._sign(artifact, timestamp).encode("ascii"))
        if not right or str(timestamp) != expires:
            raise AccessDenied("The signature of this url is wrong. Request the output again to get a new url.", reason="signature")
        if timestamp < time.time():
            raise AccessDenied("This signed url has expired. Request the output again to get a new url.", reason="expired")

    def _sign(self, artifact: str, expires: int) -> str:
        return hmac.new(self._key, f"GET\n{artifact}\n{expires}".encode(), hashlib.sha256).hexdigest()
