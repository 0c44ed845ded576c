"""What the editor says about an address that cannot be added: the cause, and what helps."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from samples.certificates import Authority
from yggdrasill.errors import AccessDenied, YggdrasillError
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.server_ext.comfy.editor import endpoints, reachability
from yggdrasill.server_ext.comfy.editor.reachability import explain_failure


@contextmanager
def web_server(answers: dict[str, Any], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve JSON documents by path, 404 for others; yield ``HOST:PORT``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers.get(self.path, {"error": "not found"})).encode()
            self.send_response(200 if self.path in answers else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


async def explained(url: str, token: str | None = "a-token-of-sixteen-letters") -> YggdrasillError:
    """Request the graphs at a URL as the editor does, and return the explained error."""
    with pytest.raises(YggdrasillError) as caught:
        await loop_thread().run_async(EndpointClient(url, token=token, name="forge").graphs())
    return await explain_failure(caught.value, url, has_token=token is not None)


def comfyui(version: str) -> dict[str, Any]:
    return {"/system_stats": {"system": {"comfyui_version": version}}}


async def test_a_comfyui_without_the_extension_is_named() -> None:
    with web_server(comfyui("0.33.0")) as address:
        found = await explained(f"http://{address}")
    assert f"ComfyUI 0.33.0 runs at {address} without Yggdrasill. Install Yggdrasill in its custom_nodes" in found.message


async def test_an_older_comfyui_is_named_with_the_version_that_is_needed() -> None:
    with web_server(comfyui("0.24.0")) as address:
        found = await explained(f"http://{address}")
    assert f"ComfyUI 0.24.0 runs at {address}, but Yggdrasill requires 0.26 or later. Update ComfyUI" in found.message


async def test_another_program_is_named() -> None:
    with web_server({}) as address:
        found = await explained(f"http://{address}")
    assert f"Another program answers at {address}, neither ComfyUI nor an endpoint" in found.message


async def test_a_wrong_scheme_is_corrected(tmp_path: Path) -> None:
    with web_server(comfyui("0.33.0")) as address:
        found = await explained(f"https://{address}")
    assert found.message == f"{address} serves http. Use the address http://{address}."
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = certificate_of(tmp_path)
    context.load_cert_chain(certificate, key)
    with web_server(comfyui("0.33.0"), context) as address:
        assert (await explained(f"http://{address}")).message == f"{address} serves https. Use the address https://{address}."
        found = await explained(f"https://{address}")
    assert f"{address} has a certificate that this machine does not trust. Enter the PEM file" in found.message


def certificate_of(folder: Path) -> tuple[Path, Path]:
    return Authority(folder).issue("127.0.0.1")


async def test_a_closed_port_names_the_option_that_opens_it() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    found = await explained(f"http://{address}")
    assert f"Nothing listens at {address}. Start ComfyUI there, with the option --listen" in found.message


async def test_an_unknown_name_and_a_silent_machine_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await explained("http://no-such-machine.invalid:8188")
    assert "The name 'no-such-machine.invalid' is unknown to this machine" in found.message

    async def drop(*address: Any) -> Any:
        raise TimeoutError

    monkeypatch.setattr(reachability.asyncio, "open_connection", drop)
    found = await explained("http://127.0.0.1:9")
    assert "127.0.0.1:9 does not answer. Check the address, that the machine is on, and that its firewall" in found.message


@pytest.mark.parametrize("has_token, words", [(True, "refuses the token"), (False, "requires a token")])
async def test_a_wrong_token_advises_to_copy_the_pairing_line(has_token: bool, words: str) -> None:
    found = await explain_failure(AccessDenied("no", reason="token"), "http://forge.lan:8188", has_token=has_token)
    assert f"forge.lan:8188 {words}. Copy the pairing line in the Yggdrasill tab" in found.message
    local = await explain_failure(AccessDenied("no", reason="token"), "http://127.0.0.1:8188", has_token=True)
    assert "This address is the machine itself" in local.message


async def test_other_refusals_keep_their_message() -> None:
    for error in (AccessDenied("Too many", reason="guesses"), AccessDenied("No role", reason="role")):
        assert await explain_failure(error, "http://forge.lan", has_token=True) is error


@pytest.mark.parametrize(
    "listening, host, url",
    [
        (["0.0.0.0"], "127.0.0.1:8188", "http://192.168.1.20:8188"),
        (["127.0.0.1", "192.168.1.30"], "localhost:8188", "http://192.168.1.30:8188"),
        (["127.0.0.1"], "127.0.0.1:8188", "http://127.0.0.1:8188"),
        (["0.0.0.0"], "forge.lan:8188", "http://forge.lan:8188"),
    ],
)
def test_a_pairing_line_has_the_address_for_other_machines(
    monkeypatch: pytest.MonkeyPatch, listening: list[str], host: str, url: str
) -> None:
    monkeypatch.setattr(endpoints.compat, "own_addresses", lambda: (listening, 8188, "http://127.0.0.1:8188"))
    monkeypatch.setattr("yggdrasill.server_ext.auth._interface_address", lambda: "192.168.1.20")
    assert endpoints._url_for_others("http", host) == url
