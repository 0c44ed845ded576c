"""One named endpoint: where it is and which credential belongs to it. The token itself is in no repr, config or error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from yggdrasill.errors import InvalidConfig
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.prefix import is_below
from yggdrasill.remote.transports.transport import Transport

__all__ = ["Endpoint", "client_of", "is_below", "token_from_environment"]


@dataclass(frozen=True)
class Endpoint:
    """``token_env`` names the variable that holds the token; it goes before ``secret``, which comes from secrets.yaml."""

    name: str
    url: str
    token_env: str | None = None
    ca: str | None = None
    secret: str | None = field(default=None, repr=False)
    transport: Transport | None = field(default=None, repr=False, compare=False)

    @property
    def token(self) -> str | None:
        """The token, the environment first; None if there is none anywhere."""
        return (os.environ.get(self.token_env) if self.token_env else None) or self.secret

    def client(self) -> EndpointClient:
        """A client for it."""
        return EndpointClient(self.url, token=self.token, name=self.name, ca=self.ca, transport=self.transport)

    @classmethod
    def from_config(cls, name: str, config: Any, where: str, secret: str | None = None) -> Endpoint:
        """From ``{url, token_env?, ca?}`` or a bare url.

        Raises:
            InvalidConfig: another shape, or a token in it.
        """
        if isinstance(config, str):
            config = {"url": config}
        if not isinstance(config, Mapping) or not isinstance(config.get("url"), str):
            raise InvalidConfig(
                f"{where}: endpoint {name!r} needs a url, such as {name}: {{url: 'http://127.0.0.1:8400', token_env: VARIABLE}}"
            )
        if "token" in config:
            raise InvalidConfig(
                f"{where}: endpoint {name!r} has a token in it; name a variable with token_env, or put it into secrets.yaml"
            )
        stray = sorted(set(map(str, config)) - {"url", "token_env", "ca"})
        texts = {key: value for key, value in config.items() if value is not None}
        if stray or not all(isinstance(value, str) for value in texts.values()):
            raise InvalidConfig(f"{where}: endpoint {name!r} has {stray or list(texts)}; it takes the texts url, token_env and ca")
        return cls(name, secret=secret, **texts)

    def to_config(self) -> dict[str, str]:
        """JSON form, without the token."""
        facts = {"url": self.url, "token_env": self.token_env, "ca": self.ca}
        return {key: value for key, value in facts.items() if value is not None}


def client_of(where: str | Endpoint | EndpointClient, token: str | None = None) -> EndpointClient:
    """The client of an endpoint, or one for a url with ``token``, else with the environment's if that is bound to the url."""
    if isinstance(where, EndpointClient):
        return where
    return where.client() if isinstance(where, Endpoint) else EndpointClient(where, token=token or token_from_environment(where))


def token_from_environment(url: str) -> str | None:
    """``YGGDRASILL_TOKEN``, for urls below ``YGGDRASILL_URL``, or where that is not set, for this machine's own addresses."""
    token, prefix = os.environ.get("YGGDRASILL_TOKEN"), os.environ.get("YGGDRASILL_URL")
    if not token:
        return None
    return token if (is_below(url, prefix) if prefix else _is_loopback(url)) else None


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
