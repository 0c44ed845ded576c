"""Request authorization: the token, the checks of Host and Origin, signed artifact urls, and the end of revoked principals.

The token keeps out other clients. The checks of Host and Origin keep out web pages: a page can make a browser send requests to this
endpoint, and its owner can point a DNS name here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from yggdrasill.errors import AccessDenied, InvalidArgument, StorageFailed, YggdrasillError, format_options
from yggdrasill.server_ext.deployment import RepeatedFailures
from yggdrasill.server_ext.logs import AuditLog
from yggdrasill.server_ext.principals import ROLES, Principal, Principals, new_token, write_private
from yggdrasill.server_ext.quotas import WriteQuotas

if TYPE_CHECKING:
    from yggdrasill.server_ext.jobs.model import Job
    from yggdrasill.values.stores.base import LocalStore

__all__ = [
    "EVERY_ADDRESS",
    "EVERY_NAME",
    "HOSTS_VARIABLE",
    "LIFETIME",
    "TOKEN_VARIABLE",
    "Access",
    "Guard",
    "GuessLimiter",
    "Signer",
    "TokenFile",
    "check_role",
    "hosts_of_environment",
    "load_or_create_secret",
    "resolve_token",
    "rotate_token",
    "token_of_endpoint",
    "url_for_others",
]

TOKEN_VARIABLE = "YGGDRASILL_TOKEN"  # noqa: S105 - the variable's name
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
HOSTS_VARIABLE = "YGGDRASILL_ALLOW_HOSTS"
EVERY_NAME = "*"
EVERY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound to
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MIN_TOKEN_LENGTH = 16
#: Wrong tokens that an address may send at once, and the seconds after which it may send another one.
_GUESSES, _SECONDS_PER_GUESS = 20, 1.0
_MAX_ADDRESSES, _MAX_REMEMBERED = 4096, 32
_IPV6_SITE_BITS = 64
_LOG = logging.getLogger("yggdrasill.server")
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
                file.write(new_token() + "\n")
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
    return _check_text(given or environment.get(TOKEN_VARIABLE) or load_or_create_secret(data_dir / "token"))


def _check_text(token: str) -> str:
    """Return ``token`` if it is long enough and can be sent in a header.

    Raises:
        InvalidArgument: the token is too short or contains other characters than printable ASCII.
    """
    if len(token) < _MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidArgument(
            f"The token must have at least {_MIN_TOKEN_LENGTH} printable ASCII characters without spaces. Leave it unset to generate one, "
            "or replace the token file with: yggdrasill token rotate"
        )
    return token


def rotate_token(data_dir: Path) -> str:
    """Replace the token in the file ``data_dir/token`` by a new one, and return it. A running endpoint accepts only the new one at once.

    Raises:
        StorageFailed: the file cannot be written; the old token stays valid.
    """
    token = new_token()
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFailed(f"Cannot create the data folder {str(data_dir)!r}: {error}.", path=str(data_dir)) from error
    write_private(data_dir / "token", token)
    return token


class TokenFile:
    """The token in the file ``data_dir/token``: calling it returns the present token, read again when the file changes.

    A file that is missing or invalid later is logged, and the token read before stays valid. ``on_token`` receives every token.

    Raises:
        As `resolve_token`, when this object is created.
    """

    def __init__(self, data_dir: Path, on_token: Callable[[str], None]) -> None:
        self._data_dir, self._on_token = data_dir, on_token
        self._file = data_dir / "token"
        self._stamp = self._read_stamp()
        self._token = resolve_token(data_dir, environment={})
        on_token(self._token)

    def __call__(self) -> str:
        """Return the token."""
        stamp = self._read_stamp()
        if stamp is not None and stamp != self._stamp:
            self._stamp = stamp
            try:
                token = resolve_token(self._data_dir, environment={})
            except YggdrasillError as error:
                _LOG.warning("The token file cannot be used; the token read before stays valid: %s", error)
                return self._token
            if token != self._token:
                self._token = token
                self._on_token(token)
                _LOG.info("The token was rotated; the old one is refused.")
        return self._token

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def token_of_endpoint(
    data_dir: Path, on_token: Callable[[str], None], given: str | None = None, environment: Mapping[str, str] = os.environ
) -> Callable[[], str]:
    """Return a function that returns an endpoint's present token: that of its file, which may be rotated, unless another is configured.

    Raises:
        As `resolve_token`.
    """
    if not given and not environment.get(TOKEN_VARIABLE):
        return TokenFile(data_dir, on_token)
    token = resolve_token(data_dir, given, environment)
    on_token(token)
    return lambda: token


class _Guesses:
    """The wrong tokens of one address: how many more it may send, and the hashes of those that it sent already."""

    def __init__(self) -> None:
        self.left, self.since = float(_GUESSES), time.monotonic()
        self.sent: OrderedDict[bytes, None] = OrderedDict()

    def refill(self) -> None:
        """Add the guesses that the time since the last call allows."""
        now = time.monotonic()
        self.left, self.since = min(_GUESSES, self.left + (now - self.since) / _SECONDS_PER_GUESS), now


class GuessLimiter:
    """Limits how many different wrong tokens each address may send; see `check`. Memory is bounded.

    A client with an outdated token sends the same one again, which counts once. Addresses of one IPv6 site count as one.
    """

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, _Guesses] = OrderedDict()

    def check(self, address: str | None, token: bytes) -> None:
        """Raise `AccessDenied` if ``address`` has sent too many wrong tokens. Then no token of it is compared, not even the right one."""
        guesses = self._addresses.get(_site_of(address))
        if guesses is None:
            return
        guesses.refill()
        if guesses.left < 1 and _digest(token) not in guesses.sent:
            raise AccessDenied("Too many wrong tokens from this address. Try again in a few seconds.", reason="guesses")

    def record(self, address: str | None, token: bytes) -> None:
        """Record a wrong token."""
        site, digest = _site_of(address), _digest(token)
        guesses = self._addresses.setdefault(site, _Guesses())
        self._addresses.move_to_end(site)
        if digest not in guesses.sent:
            guesses.refill()
            guesses.left -= 1
            guesses.sent[digest] = None
        while len(guesses.sent) > _MAX_REMEMBERED:
            guesses.sent.popitem(last=False)
        while len(self._addresses) > _MAX_ADDRESSES:
            self._addresses.popitem(last=False)


def _digest(token: bytes) -> bytes:
    return hashlib.blake2b(token, digest_size=16).digest()


def _site_of(address: str | None) -> str:
    """Return an address, or the network of an IPv6 address: one machine has all addresses of it."""
    try:
        found = ip_address((address or "").partition("%")[0])
    except ValueError:
        return address or ""
    if isinstance(found, IPv6Address) and found.ipv4_mapped is None:
        return str(ip_network((found, _IPV6_SITE_BITS), strict=False))
    return str(found)


class Guard:
    """Checks Host, Origin and token of requests. ``principals`` are the callers; a token alone is that of the owner.

    ``hosts`` are the names, in addition to the loopback names and this machine's own, under which clients reach this endpoint, with or without
    a port. If one is ``0.0.0.0`` or ``::``, the endpoint listens on all addresses and accepts any literal IP address as Host: DNS rebinding
    needs a name. If one is ``*``, every name is accepted. ``setting`` names the setting of ``hosts`` in messages.
    """

    def __init__(
        self, principals: Principals | str | Callable[[], str], hosts: Iterable[str] = (), setting: str = "the option --allow-host"
    ) -> None:
        self.principals = principals if isinstance(principals, Principals) else Principals(principals)
        self._guesses = GuessLimiter()
        given = {host.strip() for host in hosts}
        named = {host if host in EVERY_ADDRESS else _host_name(host) for host in given - {EVERY_NAME}}
        self._hosts = {*_LOOPBACK, *(named - set(EVERY_ADDRESS))}
        self._any_address = not named.isdisjoint(EVERY_ADDRESS)
        self._any_name = EVERY_NAME in given
        self._setting = setting

    def check_source(self, host: str | None, origin: str | None, fetch_site: str | None) -> None:
        """Raise `AccessDenied` unless Host names this endpoint and the request does not come from a page of another site."""
        self.check_host(host)
        self.check_origin(host, origin, fetch_site)

    def check_host(self, host: str | None) -> None:
        """Raise `AccessDenied` unless Host names this endpoint. A request with the right token needs no such check: pages do not know it."""
        name = _host_name(host or "")
        if self._any_name or name in self._hosts or (self._any_address and _is_address(name)) or name in _own_names():
            return
        raise AccessDenied(
            f"Host {name[:100]!r} is not allowed. The owner of this server can add it with {self._setting}, or in the environment variable "
            f"{HOSTS_VARIABLE}.",
            reason="host",
        )

    def check_origin(self, host: str | None, origin: str | None, fetch_site: str | None) -> None:
        """Raise `AccessDenied` if the request comes from a page of another site than Host."""
        if origin is not None and not _is_same_site(origin, host or ""):
            raise AccessDenied(f"Pages of {origin[:100]!r} may not use this endpoint.", reason="origin")
        if fetch_site not in (None, "same-origin", "none"):
            raise AccessDenied("Pages of other sites may not use this endpoint.", reason="origin")

    def authenticate(self, authorization: str | None, address: str | None = None) -> Principal:
        """Return the principal whose token is in the header ``Authorization``; ``address`` is the client's.

        Raises:
            AccessDenied: there is no valid token in it, or the address has sent too many wrong ones.
        """
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise AccessDenied("A token is required. Send it as 'Authorization: Bearer TOKEN'.", reason="token")
        token = given.strip().encode("utf-8", "replace")
        self._guesses.check(address, token)
        principal = self.principals.find(token)
        if principal is None:
            self._guesses.record(address, token)
            # one message for all cases: it must not report that a token existed
            raise AccessDenied(
                "The token is wrong, expired or revoked. The endpoint's owner sees the right one with: yggdrasill token show, and makes a new one "
                "with: yggdrasill token rotate NAME",
                reason="token",
            )
        return principal


def check_role(principal: Principal, role: str) -> None:
    """Raise `AccessDenied` (reason "role") unless the principal has ``role``."""
    if not principal.may(role):
        has = [name for name in ROLES if name in principal.roles]
        raise AccessDenied(
            f"This needs the role {role!r}; {principal.name!r} has {format_options(has)}. Ask the endpoint's owner for a token with that role.",
            reason="role",
            needed=role,
            has=has,
        )


def hosts_of_environment(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the host names in ``YGGDRASILL_ALLOW_HOSTS``, separated by commas or spaces; ``*`` allows every name."""
    return environment.get(HOSTS_VARIABLE, "").replace(",", " ").split()


def _is_same_site(origin: str, host: str) -> bool:
    """Return whether a page of ``origin`` belongs to the server that a request names as ``host``.

    Default ports are equal to none. A Host without a port matches any port of its name, because proxies often drop the port.
    """
    try:
        page, server = urlsplit(origin), urlsplit(f"//{host.strip()}")
        default = _DEFAULT_PORTS.get(page.scheme)
        ports_are_equal = server.port is None or (page.port or default) == server.port
    except ValueError:
        return False
    return default is not None and page.hostname is not None and page.hostname == server.hostname and ports_are_equal


@cache
def _own_names() -> set[str]:
    """Return this machine's own names. The full name, for which DNS may be queried, is added by a thread of its own."""
    short = socket.gethostname().lower()
    names = {short, short.partition(".")[0], f"{short.partition('.')[0]}.local"} - {""}

    def add_full_name() -> None:
        names.add(socket.getfqdn().lower())

    threading.Thread(target=add_full_name, name="yggdrasill-own-name", daemon=True).start()
    return names


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


def _is_loopback(url: str) -> bool:
    name = _host_name(url)
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name in _LOOPBACK or not name


def url_for_others(url: str, host: str) -> str:
    """Return the url at which other machines reach an endpoint that listens on ``host`` and that this machine reaches at ``url``.

    If it listens on all addresses, that is the address of the interface with the default route. Without one a warning is logged.
    """
    if host.strip() not in EVERY_ADDRESS:
        return url
    parts = urlsplit(url)
    address = _interface_address()
    if address is None:
        _LOG.warning(
            "No address of this machine was found at which others reach it, so other endpoints cannot fetch artifacts at %s and callers relay "
            "them. Pass --peer-url URL.",
            url,
        )
        return url
    found = f"{parts.scheme}://{f'[{address}]' if ':' in address else address}:{parts.port}"
    _LOG.info(
        "Other endpoints fetch artifacts at %s, or at the address that the caller used. If that is wrong, pass --peer-url URL.", found
    )
    return found


def _interface_address() -> str | None:
    """Return the address from which this machine would send to others, or None. Nothing is sent: the targets are reserved for documents."""
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                address = str(probe.getsockname()[0]).partition("%")[0]
        except OSError:
            continue
        if not ip_address(address).is_loopback and not ip_address(address).is_unspecified:
            return address
    return None


class Signer:
    """Signs artifact urls, so that another endpoint can fetch one artifact for a limited time without this endpoint's token.

    The query parameters are ``exp`` and ``sig``: an HMAC-SHA256 over the method, the hash and the expiry. With ``follows_caller``, urls have
    the address at which the caller reached this endpoint, unless that is an address of one machine itself.
    """

    def __init__(self, key: str, peer_url: str | None) -> None:
        self._key = key.encode("utf-8")
        self.peer_url = peer_url.rstrip("/") if peer_url else None
        self.follows_caller = False

    def url(self, artifact: str, called_at: str | None = None) -> str | None:
        """Return the signed url of ``artifact``, or None while ``peer_url`` is unknown. ``called_at`` is the url that the caller used."""
        base = called_at if self.follows_caller and called_at and not _is_loopback(called_at) else self.peer_url
        if base is None:
            return None
        expires = int(time.time()) + LIFETIME
        return f"{base}/yggdrasill/v1/artifacts/{artifact}?exp={expires}&sig={self._sign(artifact, expires)}"

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


# -- callers ----------------------------------------------------------------------------------------------------------

_CHECK_SECONDS = 0.5


class Access:
    """The principals of an endpoint whose data folder is ``data_dir``. Their artifacts are in ``store``."""

    def __init__(self, principals: Principals, data_dir: Path, store: LocalStore) -> None:
        self.principals = principals
        self.audit = AuditLog(data_dir)
        self.quotas = WriteQuotas(data_dir / "quotas.sqlite", store)
        self._checking: asyncio.Task[None] | None = None

    def start(self, unfinished: Callable[[], Iterable[Job]], stop: Callable[[Job, str], None]) -> None:
        """Begin to stop, with ``stop(job, reason)``, the unfinished jobs of principals that are revoked or expire."""
        self._checking = asyncio.create_task(self._check(unfinished, stop))

    async def close(self) -> None:
        """End the checks and write the audit log."""
        if self._checking is not None:
            self._checking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._checking
        await asyncio.to_thread(self.audit.close)
        await asyncio.to_thread(self.quotas.close)

    async def _check(self, unfinished: Callable[[], Iterable[Job]], stop: Callable[[Job, str], None]) -> None:
        failures = RepeatedFailures("The check for revoked principals failed; it is repeated.")
        while True:
            with failures.logged():
                for job in unfinished():
                    if not self.principals.is_valid(job.principal) and not job.token.cancelled:
                        self.audit.record("endpoint", "cancel_revoked", job.principal, job=job.job_id)
                        stop(job, f"The token of {job.principal!r} was revoked or has expired, so its unfinished jobs are cancelled.")
            await asyncio.sleep(_CHECK_SECONDS)
