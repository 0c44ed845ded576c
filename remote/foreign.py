"""The one place where exceptions of the network become ours; total over what aiohttp, sockets and timeouts raise."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from yggdrasill.errors import AccessDenied, EndpointUnreachable, InvalidArgument, ProtocolMismatch, YggdrasillError

__all__ = ["FOREIGN", "translate", "translated"]

#: What `translated` catches; aiohttp's errors are added when it is loaded, and all derive from its ClientError.
FOREIGN: tuple[type[Exception], ...] = (OSError, asyncio.TimeoutError, TimeoutError, EOFError, asyncio.InvalidStateError)


def translate(error: Exception, url: str) -> YggdrasillError:
    """Our error for a foreign one that a request to ``url`` raised."""
    import aiohttp

    if isinstance(error, aiohttp.InvalidURL):
        return InvalidArgument(f"{url!r} is no url of an endpoint; give one such as 'http://127.0.0.1:8400'", url=url)
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError, aiohttp.ServerFingerprintMismatch)):
        return AccessDenied(
            f"the endpoint at {url} has no certificate this machine trusts ({_said(error)}); name its authority with 'ca' in endpoints.yaml",
            url=url,
        )
    if isinstance(error, (aiohttp.ContentTypeError, aiohttp.TooManyRedirects, aiohttp.WSServerHandshakeError)):
        return ProtocolMismatch(f"what answers at {url} is no Yggdrasill endpoint ({_said(error)}); check the url and the port", url=url)
    if isinstance(error, aiohttp.ClientResponseError):
        return ProtocolMismatch(f"what answers at {url} speaks another HTTP ({_said(error)}); check the url and the port", url=url)
    if isinstance(error, (aiohttp.ClientConnectorError, ConnectionRefusedError)):
        return EndpointUnreachable(f"nothing answers at {url} ({_said(error)}); start the endpoint or correct its url", url=url)
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return EndpointUnreachable(f"the endpoint at {url} is silent for too long; check that it is alive", url=url, broken=True)
    return EndpointUnreachable(f"the connection to {url} broke ({_said(error)})", url=url, broken=True)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn every foreign exception raised inside into ours, with the original as its cause."""
    import aiohttp

    try:
        yield
    except Exception as error:
        if isinstance(error, YggdrasillError) or not isinstance(error, (aiohttp.ClientError, *FOREIGN)):
            raise
        raise translate(error, url) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
