"""Urls that give away one artifact for a while, so that another endpoint may fetch it without this one's token."""

from __future__ import annotations

import hashlib
import hmac
import time

from yggdrasill.errors import AccessDenied

__all__ = ["LIFETIME", "Signer"]

LIFETIME = 3600
"""Seconds a signed url lasts."""

_LATEST = 1 << 40


class Signer:
    """Signs and checks ``exp`` and ``sig`` of an artifact's url: HMAC-SHA256 over the act, the hash and the expiry."""

    def __init__(self, key: str, peer_url: str | None) -> None:
        self._key = key.encode("utf-8")
        self.peer_url = peer_url.rstrip("/") if peer_url else None

    def url(self, artifact: str) -> str | None:
        """Where others fetch ``artifact``, or None if nobody said how they reach this endpoint."""
        if self.peer_url is None:
            return None
        expires = int(time.time()) + LIFETIME
        return f"{self.peer_url}/yggdrasill/v1/artifacts/{artifact}?exp={expires}&sig={self._sign(artifact, expires)}"

    def check(self, artifact: str, expires: str, signature: str) -> None:
        """Raise `AccessDenied` unless this signer signed exactly that, and not too long ago."""
        moment = int(expires) if expires.isascii() and expires.isdigit() and len(expires) < 13 else _LATEST
        right = hmac.compare_digest(signature.encode("utf-8", "replace"), self._sign(artifact, moment).encode("ascii"))
        if not right or str(moment) != expires:
            raise AccessDenied("this signed url is not one of this endpoint's; ask for the output again", reason="signature")
        if moment < time.time():
            raise AccessDenied("this signed url has expired; ask for the output again", reason="expired")

    def _sign(self, artifact: str, expires: int) -> str:
        return hmac.new(self._key, f"GET\n{artifact}\n{expires}".encode(), hashlib.sha256).hexdigest()
