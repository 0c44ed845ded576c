"""One named endpoint: its URL and its credential, and the pairing line that passes both to another machine.

The pairing line is ``yggdrasill-pairing: [NAME] URL TOKEN``, to be pasted into an editor or into ``yggdrasill endpoints pair``. It is not a command,
because other users of a machine see the arguments of commands. Anyone with the line may use the endpoint.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from yggdrasill.errors import InvalidArgument, InvalidConfig
from yggdrasill.remote.client import EndpointClient, is_below
from yggdrasill.remote.serverless.options import API_KEY_VARIABLE, ServerlessOptions

__all__ = ["Endpoint", "Pairing", "client_of", "is_below", "pairing_line", "read_pairing", "token_from_environment"]

_SERVERLESS = "runpod://"
_MARK = "yggdrasill-pairing:"
_COMMAND = "yggdrasill endpoints add"
_OPEN_NAME = "NAME"
_OPEN_TOKEN = "-"  # noqa: S105 - where a token would stand
_LONGEST = 4000
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
#: Headers of requests that the client or the connection sets.
_OWN_HEADERS = frozenset(
    {
        "authorization",
        "host",
        "content-length",
        "content-type",
        "transfer-encoding",
        "connection",
        "accept",
        "range",
        "expect",
        "x-yggdrasill-protocol",
    }
)
#: An address without a scheme: a host with a port or a dot, or an IPv6 address in brackets.
_ADDRESS = re.compile(r"(localhost|[\w-]+:\d+|[\w-]+(\.[\w-]+)+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?)(/\S*)?", re.ASCII)


@dataclass(frozen=True)
class Endpoint:
    """A named endpoint. ``token_env`` names the variable with the token; it has precedence over ``secret``, which comes from secrets.yaml.

    ``headers`` are sent with each request, for a gateway in front of the endpoint; a value is a text or ``{"env": VARIABLE}``. The token and
    the values of headers appear in no repr or error, and the token in no config. ``serverless`` has the settings of a ``runpod://`` endpoint,
    whose token is an API key, by default that in RUNPOD_API_KEY.
    """

    name: str
    url: str
    token_env: str | None = None
    ca: str | None = None
    secret: str | None = field(default=None, repr=False)
    headers: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict, repr=False, hash=False)
    serverless: ServerlessOptions = field(default_factory=ServerlessOptions)

    @property
    def is_serverless(self) -> bool:
        """Return whether its workers take jobs from a queue of RunPod."""
        return self.url.startswith(_SERVERLESS)

    @property
    def token(self) -> str | None:
        """Return the token (environment first), or None."""
        variable = self.token_env or (API_KEY_VARIABLE if self.is_serverless and self.secret is None else None)
        return (os.environ.get(variable) if variable else None) or self.secret

    def client(self, token: Callable[[], str | None] | None = None, renew: Callable[[], None] | None = None) -> EndpointClient:
        """Return a client for it, which sends ``token()`` if that is given. ``renew`` as for `EndpointClient`."""
        source = self.secret if self.token_env is None and not self.is_serverless else lambda: self.token
        options = self.serverless if self.is_serverless else None
        return EndpointClient(
            self.url, token=token or source, name=self.name, ca=self.ca, renew=renew, headers=self.sent_headers, serverless=options
        )

    def sent_headers(self) -> dict[str, str]:
        """Return the headers with the present values of their variables. Raise `InvalidConfig` if a variable is not set."""
        found = {}
        for name, value in self.headers.items():
            if isinstance(value, str):
                found[name] = value
                continue
            text = os.environ.get(value["env"])
            if text is None:
                raise InvalidConfig(
                    f"The header {name!r} of endpoint {self.name!r} needs the environment variable {value['env']!r}. Set it."
                )
            found[name] = text
        return found

    @classmethod
    def from_config(cls, name: str, config: Any, where: str, secret: str | None = None) -> Endpoint:
        """Build from ``{url, token_env?, ca?, headers?}`` or a URL; a ``runpod://`` endpoint takes ``store`` and ``budget`` instead of headers.

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
        is_serverless = config["url"].startswith(_SERVERLESS)
        more = ("store", "budget") if is_serverless else ("headers",)
        unknown = sorted(set(map(str, config)) - {"url", "token_env", "ca", *more})
        texts = {key: value for key, value in config.items() if value is not None and key not in more}
        if unknown or not all(isinstance(value, str) for value in texts.values()):
            takes = "store as a text and budget" if is_serverless else "headers"
            raise InvalidConfig(
                f"{where}: endpoint {name!r} has {unknown or list(texts)}; it takes url, token_env and ca as texts, and {takes} as a mapping"
            )
        if is_serverless:
            options = ServerlessOptions.from_config(config.get("store"), config.get("budget"), f"{where}: endpoint {name!r}")
            return cls(name, secret=secret, serverless=options, **texts)
        return cls(name, secret=secret, headers=_read_headers(config.get("headers"), f"{where}: endpoint {name!r}"), **texts)

    def to_config(self) -> dict[str, Any]:
        """Return the JSON form, without the token."""
        headers = {name: value if isinstance(value, str) else dict(value) for name, value in self.headers.items()}
        facts = {"url": self.url, "token_env": self.token_env, "ca": self.ca, "headers": headers or None, **self.serverless.to_config()}
        return {key: value for key, value in facts.items() if value is not None}


def _read_headers(config: Any, where: str) -> dict[str, str | dict[str, str]]:
    """Parse the headers of an endpoint. Raise `InvalidConfig` for another form, or a header that requests have already."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise InvalidConfig(f"{where}: headers must be a mapping from names to texts or {{env: VARIABLE}}, got {type(config).__name__}")
    for name, value in config.items():
        if not isinstance(name, str) or not _HEADER.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise InvalidConfig(f"{where}: {name!r} cannot be an additional header; Authorization and the like are set by the client")
        variable = value.get("env") if isinstance(value, Mapping) and set(value) == {"env"} else None
        text = value if isinstance(value, str) else variable
        if not isinstance(text, str) or not text.isprintable() or not text.isascii() or not text:
            raise InvalidConfig(f"{where}: header {name!r} must be printable ASCII text or {{env: VARIABLE}}")
    return {str(name): value if isinstance(value, str) else {"env": value["env"]} for name, value in config.items()}


def client_of(where: str | Endpoint | EndpointClient, token: str | None = None) -> EndpointClient:
    """Return the client of an endpoint, or one for a URL with ``token``, else with the environment's token if that is bound to the URL."""
    if isinstance(where, EndpointClient):
        return where
    return where.client() if isinstance(where, Endpoint) else EndpointClient(where, token=token or (lambda: token_from_environment(where)))


def token_from_environment(url: str) -> str | None:
    """Return ``YGGDRASILL_TOKEN`` for URLs below ``YGGDRASILL_URL``; if that is not set, for addresses of this machine; else None.

    For a ``runpod://`` URL it is ``RUNPOD_API_KEY``.
    """
    if url.startswith(_SERVERLESS):
        return os.environ.get(API_KEY_VARIABLE) or None
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


@dataclass(frozen=True)
class Pairing:
    """A parsed pairing line; ``name`` and ``token`` are None if the line leaves them open."""

    url: str
    name: str | None = None
    token: str | None = field(default=None, repr=False)


def pairing_line(url: str, token: str, name: str | None = None) -> str:
    """Return the pairing line of an endpoint."""
    return f"{_MARK} {shlex.join([*([name] if name else []), url, token])}"


def read_pairing(line: str) -> Pairing:
    """Parse a pairing line, with any text before it; the command of earlier releases; or a URL or address with an optional token after it.

    Raises:
        InvalidArgument: none of these; the message does not repeat the line.
    """
    line = line[:_LONGEST]
    _, marked, after_mark = line.partition(_MARK)
    _, found, after_command = line.partition(_COMMAND)
    try:
        words = shlex.split(after_mark if marked else after_command if found else line)
    except ValueError:
        raise _unreadable() from None
    if marked:
        return _read_marked(words)
    token = None
    if "--token" in words[:-1]:
        at = words.index("--token")
        token = words[at + 1]
        words = words[:at]
    if words and not found and _ADDRESS.fullmatch(words[0]):
        words[0] = f"http://{words[0]}"
    named = words[: 2 if found else 0]
    if len(named) == 2 and _is_url(named[1]):
        return Pairing(named[1], None if named[0] == _OPEN_NAME else named[0], None if token == _OPEN_TOKEN else token)
    if found or not words or len(words) > 2 or not _is_url(words[0]):
        raise _unreadable()
    return Pairing(words[0], None, words[1] if len(words) == 2 else token)


def _read_marked(words: list[str]) -> Pairing:
    """Return the pairing of ``[NAME] URL TOKEN``."""
    name = None if not words or _is_url(words[0]) else words[0]
    rest = words if name is None else words[1:]
    if len(rest) != 2 or not _is_url(rest[0]):
        raise _unreadable()
    return Pairing(rest[0], name, rest[1])


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _unreadable() -> InvalidArgument:
    return InvalidArgument(
        "not a pairing line; expected 'yggdrasill-pairing: URL TOKEN', or an address such as http://192.168.1.20:8188. "
        "The other machine's editor copies its pairing line, and 'yggdrasill serve' prints it"
    )
