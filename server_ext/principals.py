"""Principals: the named callers of an endpoint, with their roles, quotas and tokens.

They are kept in ``principals.json`` in the data folder, which contains hashes of tokens and never a token. The token of the file ``token``
belongs to the principal `OWNER`, who has all roles and is not in that file.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from yggdrasill.errors import DuplicateName, InvalidArgument, InvalidConfig, StorageFailed, UnknownName, YggdrasillError, unknown_name
from yggdrasill.values.files import FileLock, failing

__all__ = [
    "ADMIN",
    "DEPLOY",
    "OWNER",
    "OWNER_NAME",
    "READ",
    "ROLES",
    "RUN",
    "WORK",
    "Principal",
    "PrincipalFile",
    "Principals",
    "call_key",
    "new_token",
    "principal_of_key",
    "private_key",
    "token_digest",
    "write_private",
]

READ, RUN, DEPLOY, WORK, ADMIN = "read", "run", "deploy", "work", "admin"
ROLES = (READ, RUN, DEPLOY, WORK, ADMIN)
"""``read``: see the endpoint, its graphs and one's jobs. ``run``: call graphs, write artifacts, cancel one's jobs. ``deploy``: bring
graphs, workflows and models. ``work``: take the jobs of a gateway's pools as a worker. ``admin``: everything, also with the jobs and graphs of
others. ``run``, ``deploy`` and ``work`` include ``read``."""
OWNER_NAME = "owner"
FILE_NAME = "principals.json"
_VERSION = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LOCK_SECONDS = 10.0
_LOG = logging.getLogger("yggdrasill.server")
_Stamp: TypeAlias = "tuple[int, int, int] | None"
#: Separates the name of a principal from the key of a call. No name contains it.
_SEPARATOR = "\x1f"


def token_digest(token: bytes) -> bytes:
    """Return the SHA-256 hash of a token. Tokens are random, so that a fast hash protects them."""
    return hashlib.sha256(token).digest()


def private_key(principal: str, key: str) -> str:
    """Return the key under which a call of ``principal`` is stored, so that equal keys of two principals do not meet.

    Raises:
        InvalidArgument: the owner's key has the form of the stored key of another principal.
    """
    if principal != OWNER_NAME:
        return f"{principal}{_SEPARATOR}{key}"
    if principal_of_key(key) != OWNER_NAME:
        raise InvalidArgument("A job key must not begin with a name and the character U+001F. Use another key.")
    return key


def call_key(stored: str) -> str:
    """Return the key that the caller sent, from the one under which the call is stored."""
    return stored.partition(_SEPARATOR)[2] if principal_of_key(stored) != OWNER_NAME else stored


def principal_of_key(stored: str) -> str:
    """Return the name of the principal to whom a stored key belongs."""
    name, separator, _ = stored.partition(_SEPARATOR)
    return name if separator and _NAME.fullmatch(name) else OWNER_NAME


@dataclass(frozen=True)
class Principal:
    """A caller of an endpoint.

    ``quota_bytes`` bounds the artifacts that the principal wrote, ``max_jobs`` its unfinished jobs; None means unbounded. ``expires``,
    ``revoked`` and ``created`` are in seconds since the epoch. ``digest`` is the hash of its token, None after a revocation.
    """

    name: str
    roles: frozenset[str]
    quota_bytes: int | None = None
    max_jobs: int | None = None
    expires: float | None = None
    revoked: float | None = None
    created: float | None = None
    digest: bytes | None = field(default=None, repr=False)

    @property
    def is_valid(self) -> bool:
        """Whether its token is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or time.time() < self.expires)

    def may(self, role: str) -> bool:
        """Return whether the principal has ``role``, directly or through another one."""
        return role in self.roles or ADMIN in self.roles or (role == READ and bool(self.roles))

    def may_touch(self, owner: str) -> bool:
        """Return whether the principal may see and change the jobs, graphs and uploads of the principal ``owner``."""
        return owner == self.name or self.may(ADMIN)

    def to_dict(self) -> dict[str, Any]:
        """Return the principal as JSON, without the hash of its token."""
        return {
            "roles": sorted(self.roles, key=ROLES.index),
            "quota_bytes": self.quota_bytes,
            "max_jobs": self.max_jobs,
            "expires": self.expires,
            "revoked": self.revoked,
            "created": self.created,
        }


OWNER = Principal(OWNER_NAME, frozenset(ROLES))
"""The principal of the file ``token``."""


class PrincipalFile:
    """The file ``principals.json`` of a data folder, for the commands that change it. Processes change it one at a time.

    All methods raise `InvalidConfig` if the file is damaged, and `StorageFailed` if it cannot be read or written.
    """

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / FILE_NAME

    def read(self) -> dict[str, Principal]:
        """Return the principals by name, without the owner."""
        try:
            if os.name == "posix" and self.path.stat().st_mode & 0o077:
                self.path.chmod(0o600)
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise StorageFailed(f"Cannot read {str(self.path)!r}: {error}.", path=str(self.path)) from error
        try:
            document = json.loads(text)
            if document["version"] != _VERSION:
                raise InvalidConfig(
                    f"{str(self.path)!r} has version {document['version']!r}; this yggdrasill reads version {_VERSION}. Update yggdrasill."
                )
            return {name: _from_dict(name, entry) for name, entry in document["principals"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidConfig(
                f"{str(self.path)!r} is damaged ({type(error).__name__}: {str(error)[:200]}). Restore it from a backup, or delete it and make "
                "the tokens again with: yggdrasill token add NAME --roles ROLES"
            ) from error

    def add(
        self,
        name: str,
        roles: Iterable[str],
        *,
        quota_bytes: int | None = None,
        max_jobs: int | None = None,
        expires: float | None = None,
    ) -> str:
        """Add a principal and return its new token, which is not stored.

        Raises:
            InvalidArgument: the name, a role or a bound is invalid. DuplicateName: there is such a principal, perhaps a revoked one.
        """
        chosen = frozenset(roles)
        if not _NAME.fullmatch(name) or name == OWNER_NAME:
            raise InvalidArgument(
                f"{name[:80]!r} cannot name a principal. Use 1 to 64 of the characters a-z, 0-9, '.', '_' and '-', beginning with a letter or "
                f"digit, and not {OWNER_NAME!r}."
            )
        for role in sorted(chosen):
            if role not in ROLES:
                raise unknown_name("role", role, ROLES)
        if not chosen:
            raise InvalidArgument(f"A principal needs at least one role. Available: {', '.join(map(repr, ROLES))}.")
        if (quota_bytes is not None and quota_bytes < 0) or (max_jobs is not None and max_jobs < 0):
            raise InvalidArgument("The quota and the number of jobs must be at least 0.")
        if expires is not None and not time.time() < expires < float("inf"):
            raise InvalidArgument("The token would already be expired. Pass a time in the future.")
        with self._changing() as principals:
            if name in principals:
                raise DuplicateName(f"There is a principal {name!r} already. Give it a new token with: yggdrasill token rotate {name}")
            token = new_token()
            digest = token_digest(token.encode("ascii"))
            principals[name] = Principal(name, chosen, quota_bytes, max_jobs, expires, None, time.time(), digest)
            return token

    def rotate(self, name: str, *, expires: float | None = None) -> str:
        """Return a new token of a principal, which replaces the old one and ends a revocation. ``expires`` replaces the expiry if given.

        Raises:
            UnknownName: there is no such principal. InvalidArgument: its expiry has passed, and no new one was given.
        """
        with self._changing() as principals:
            found = self._find(principals, name)
            until = found.expires if expires is None else expires
            if until is not None and until <= time.time():
                raise InvalidArgument(f"The token of {name!r} has expired. Pass a new time: yggdrasill token rotate {name} --expires 30d")
            token = new_token()
            principals[name] = replace(found, digest=token_digest(token.encode("ascii")), revoked=None, expires=until)
            return token

    def revoke(self, name: str) -> None:
        """Revoke the token of a principal. Its name stays reserved, because its jobs and graphs have it.

        Raises:
            UnknownName: there is no such principal.
        """
        with self._changing() as principals:
            found = self._find(principals, name)
            principals[name] = replace(found, digest=None, revoked=found.revoked or time.time())

    @staticmethod
    def _find(principals: dict[str, Principal], name: str) -> Principal:
        if name not in principals:
            raise unknown_name("principal", name, principals, kind=UnknownName)
        return principals[name]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Principal]]:
        """Yield the principals, and write them when the block ends without an error."""
        lock = FileLock(self.path.with_name(f".{FILE_NAME}.lock"), timeout=_LOCK_SECONDS, mode=0o600)
        with failing(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.acquire()
        try:
            principals = self.read()
            yield principals
            document = {"version": _VERSION, "principals": {name: _entry(one) for name, one in principals.items()}}
            write_private(self.path, json.dumps(document, indent=1))
        finally:
            lock.release()


def new_token() -> str:
    """Return 256 random bits in hex: text that a command line never takes for an option, as ``-`` at its beginning would be."""
    return secrets.token_hex(32)


def write_private(path: Path, text: str) -> None:
    """Replace a file that only this user can read, so that a reader finds the old or the new text.

    Raises:
        StorageFailed: it cannot be written; the old file is unchanged.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise StorageFailed(f"Cannot write {str(path)!r}: {error}. The old file is unchanged.", path=str(path)) from error


class Principals:
    """The principals of a running endpoint: the owner and those of the file, read again when it changes. Safe for threads.

    ``token`` is the owner's token, or a function that returns the present one. A file that is damaged later is logged, and the principals
    read before stay valid; without the file, the owner is the only one.

    Raises:
        InvalidConfig, StorageFailed: the file cannot be read when this object is created.
    """

    def __init__(self, token: str | Callable[[], str], data_dir: Path | None = None) -> None:
        self._token = token
        self._file = None if data_dir is None else PrincipalFile(data_dir)
        self._lock = threading.Lock()
        self._stamp = self._read_stamp()
        self._known = {} if self._file is None else self._file.read()

    def find(self, token: bytes) -> Principal | None:
        """Return the principal with this token, or None if the token is unknown, expired or revoked. The time does not depend on the token."""
        digest = token_digest(token)
        owner = self._owner()
        found = owner if hmac.compare_digest(digest, owner.digest or b"") else None
        for principal in self._present().values():
            if principal.digest is not None and hmac.compare_digest(digest, principal.digest) and principal.is_valid:
                found = found or principal
        return found

    def accepts(self, principal: Principal) -> bool:
        """Return whether the token with which ``principal`` was found still is valid."""
        present = self.get(principal.name)
        return present is not None and present.is_valid and present.digest is not None and present.digest == principal.digest

    def is_valid(self, name: str) -> bool:
        """Return whether the principal with this name may have jobs: it exists and is neither revoked nor expired."""
        present = self.get(name)
        return present is not None and present.is_valid

    def get(self, name: str) -> Principal | None:
        """Return the principal with this name, valid or not, or None."""
        return self._owner() if name == OWNER_NAME else self._present().get(name)

    def _owner(self) -> Principal:
        token = self._token() if callable(self._token) else self._token
        return replace(OWNER, digest=token_digest(token.encode("ascii")))

    def _present(self) -> dict[str, Principal]:
        if self._file is None:
            return {}
        with self._lock:
            stamp = self._read_stamp()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._known = self._file.read()
                except YggdrasillError as error:
                    _LOG.warning("The principals cannot be read; those read before stay valid: %s", error)
            return self._known

    def _read_stamp(self) -> _Stamp:
        try:
            status = None if self._file is None else self._file.path.stat()
        except OSError:
            return None
        return None if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)


def _entry(principal: Principal) -> dict[str, Any]:
    return {**principal.to_dict(), "token_sha256": None if principal.digest is None else principal.digest.hex()}


def _from_dict(name: str, entry: dict[str, Any]) -> Principal:
    """Raises ValueError, KeyError, TypeError if the entry is invalid."""
    roles, digest = entry["roles"], entry["token_sha256"]
    if not _NAME.fullmatch(name) or name == OWNER_NAME or not isinstance(roles, list) or not set(roles) <= set(ROLES):
        raise ValueError(f"the entry of {name[:80]!r} is invalid")
    numbers = [entry.get(field) for field in ("quota_bytes", "max_jobs", "expires", "revoked", "created")]
    if not all(number is None or (isinstance(number, (int, float)) and not isinstance(number, bool)) for number in numbers):
        raise ValueError(f"a number of {name!r} is invalid")
    found = None if digest is None else bytes.fromhex(digest)
    if found is not None and len(found) != hashlib.sha256().digest_size:
        raise ValueError(f"the hash of the token of {name!r} is invalid")
    quota, jobs, expires, revoked, created = numbers
    return Principal(name, frozenset(roles), quota, jobs, expires, revoked, created, found)
