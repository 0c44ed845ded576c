"""Why a server cannot be added as an endpoint, in terms of what its user can do: requests of its own find out what listens at the address."""

from __future__ import annotations

import asyncio
import socket
from typing import Any
from urllib.parse import urlsplit

from yggdrasill.errors import AccessDenied, EndpointUnreachable, ProtocolMismatch, YggdrasillError
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.editor.endpoint_summary import LOOPBACK, host_of

__all__ = ["explain_failure"]

_TIMEOUT = 3.0
_ABOUT_COMFYUI = "/system_stats"
_OTHER_SCHEME = {"http": "https", "https": "http"}
_NOT_REACHED = frozenset({"EndpointUnreachable", "AccessDenied", "ProtocolMismatch", "EndpointFailed"})


async def explain_failure(error: YggdrasillError, url: str, *, has_token: bool) -> YggdrasillError:
    """Return ``error``, which a request to a new endpoint raised, with a message that says what is wrong and what helps.

    Errors that already do so are returned unchanged.
    """
    reason = error.details.get("reason")
    if type(error).__name__ not in _NOT_REACHED or reason in ("guesses", "role", "host", "origin") or "oldest" in error.details:
        return error
    if reason == "token":
        return _token_problem(url, has_token)
    if await _answers_other_scheme(url):
        scheme = _OTHER_SCHEME[urlsplit(url).scheme]
        return ProtocolMismatch(f"{host_of(url)} serves {scheme}. Use the address {scheme}://{host_of(url)}.", reason="scheme")
    if isinstance(error, EndpointUnreachable):
        return await _connection_problem(url) or error
    found = await _request(url + _ABOUT_COMFYUI)
    if isinstance(error, AccessDenied) and found is not None:
        return AccessDenied(
            f"{host_of(url)} has a certificate that this machine does not trust. Enter the PEM file of its certificate authority, which must be on "
            "this machine.",
            reason="certificate",
        )
    return _other_server(url, found) or error


def _token_problem(url: str, has_token: bool) -> AccessDenied:
    advice = "Copy the pairing line in the Yggdrasill tab of that ComfyUI, and paste it here."
    if not has_token:
        return AccessDenied(f"{host_of(url)} requires a token. {advice}", reason="token")
    local = " This address is the machine itself: in the line of another machine, write its address." if _is_local(url) else ""
    return AccessDenied(f"{host_of(url)} refuses the token.{local} {advice}", reason="token")


def _is_local(url: str) -> bool:
    return host_of(url).startswith(LOOPBACK)


async def _answers_other_scheme(url: str) -> bool:
    """Return whether a server of the other scheme answers at the address of ``url``."""
    parts = urlsplit(url)
    found = await _request(f"{_OTHER_SCHEME[parts.scheme]}://{parts.netloc}{parts.path}{_ABOUT_COMFYUI}")
    # a server for https answers plain http with status 400
    return found is not None and found[0] != 400


async def _request(url: str) -> tuple[int, Any] | None:
    """Return status and JSON (None for another body) of a GET request without credentials, or None without an answer."""
    import aiohttp

    try:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
        # the certificate does not matter: nothing secret is sent, and the answer is only shown
        connector = aiohttp.TCPConnector(ssl=False)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            try:
                return answer.status, await answer.json()
            except (ValueError, aiohttp.ContentTypeError):
                return answer.status, None
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
        return None


async def _connection_problem(url: str) -> EndpointUnreachable | None:
    """Return why no connection is made to the address of ``url``, or None if one is."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), _TIMEOUT)
    except socket.gaierror:
        text = f"The name {host!r} is unknown to this machine. Check its spelling, or use the IP address."
    except asyncio.TimeoutError:
        text = f"{host}:{port} does not answer. Check the address, that the machine is on, and that its firewall allows connections to port {port}."
    except OSError:
        text = (
            f"Nothing listens at {host}:{port}. Start ComfyUI there, with the option --listen if it is another machine: without it ComfyUI accepts "
            "only programs of its own machine. Then check the port and the firewall."
        )
    else:
        writer.close()
        return None
    return EndpointUnreachable(text, reason="connection")


def _other_server(url: str, found: tuple[int, Any] | None) -> ProtocolMismatch | None:
    """Return what answers at ``url`` instead of an endpoint, by its answer about ComfyUI."""
    if found is None:
        return None
    system = found[1].get("system") if isinstance(found[1], dict) else None
    if found[0] != 200 or not isinstance(system, dict):
        text = f"Another program answers at {host_of(url)}, neither ComfyUI nor an endpoint of Yggdrasill. Check the address and the port."
        return ProtocolMismatch(text, reason="program")
    version = str(system.get("comfyui_version") or "")
    problem = compat.version_problem(version or None)
    if problem is not None:
        needed = ".".join(map(str, compat.MINIMUM_VERSION))
        text = f"ComfyUI {version} runs at {host_of(url)}, but Yggdrasill requires {needed} or later. Update ComfyUI on that machine."
        return ProtocolMismatch(text, reason="version")
    text = (
        f"ComfyUI {version} runs at {host_of(url)} without Yggdrasill. Install Yggdrasill in its custom_nodes, and restart it. If it is installed, "
        "the log of that ComfyUI says why it is off."
    )
    return ProtocolMismatch(text, reason="extension")
