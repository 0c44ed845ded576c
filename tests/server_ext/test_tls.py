"""TLS by a certificate of the endpoint, with an authority of the tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from samples.certificates import Authority
from samples.endpoints import EndpointProcess
from samples.http_client import Http, error_of, one_node, until
from yggdrasill.errors import AccessDenied, InvalidArgument
from yggdrasill.remote import Endpoint
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.server_ext.server import Settings
from yggdrasill.server_ext.tls import Certificate
from yggdrasill.values.payload import blake3_hex


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@contextlib.contextmanager
def secured(folder: Path, certificate: tuple[Path, Path], **settings: Any) -> Iterator[EndpointProcess]:
    files = {"tls_cert": str(certificate[0]), "tls_key": str(certificate[1])}
    process = EndpointProcess("secured", folder, **files, **settings).start()
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="module")
def server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointProcess]:
    with secured(tmp_path_factory.mktemp("secured"), authority.issue("right")) as process:
        yield process


def health(process: EndpointProcess, authority: Authority) -> requests.Response:
    headers = {"Authorization": f"Bearer {process.token}"}
    return requests.get(f"{process.url}/yggdrasill/v1/health", headers=headers, verify=str(authority.ca), timeout=10)


def endpoint(process: EndpointProcess, ca: Path | None, url: str | None = None) -> Endpoint:
    return Endpoint("secured", url or process.url, None, None if ca is None else str(ca), process.token)


def failure(reached: Endpoint) -> str:
    client = reached.client()
    with pytest.raises(AccessDenied) as caught:
        loop_thread().run(client.health())
    return caught.value.message


def test_an_endpoint_with_a_certificate_serves_https(server: EndpointProcess, authority: Authority) -> None:
    assert server.url.startswith("https://127.0.0.1:")
    assert health(server, authority).json()["status"] == "ok"
    answer = loop_thread().run(endpoint(server, authority.ca).client().health())
    assert answer["status"] == "ok"


def test_large_bodies_and_signed_urls_work_over_https(server: EndpointProcess, authority: Authority) -> None:
    data = os.urandom(5 << 20)
    url = f"{server.url}/yggdrasill/v1/artifacts/{blake3_hex(memoryview(data))}"
    headers = {"Authorization": f"Bearer {server.token}"}
    assert requests.put(url, data=data, headers=headers, verify=str(authority.ca), timeout=30).status_code == 201
    assert requests.get(url, headers=headers, verify=str(authority.ca), timeout=30).content == data
    capabilities = requests.get(f"{server.url}/yggdrasill/v1/capabilities", headers=headers, verify=str(authority.ca), timeout=30).json()
    assert capabilities["peer_url"] == server.url


def test_signed_urls_of_a_secured_endpoint_on_all_addresses_are_https(tmp_path: Path, authority: Authority) -> None:
    certificate = authority.issue("all")
    with secured(tmp_path, certificate, host="0.0.0.0", allow_hosts=["forge.lan"], plugins=["samples.served_blocks"]) as process:
        http = Http(process)
        # otherwise REQUESTS_CA_BUNDLE would replace the authority
        http.session.trust_env = False
        http.session.verify = str(authority.ca)
        http.session.headers["Host"] = "forge.lan:8443"
        http.deploy("double", one_node("double"))
        answer = http.submit("double", {"x": torch.ones(500_000)}).json()
        urls = [payload["url"] for payload in answer["output"]["payloads"]]
        assert urls
        assert all(url.startswith("https://forge.lan:8443/") for url in urls)


def test_an_unknown_authority_is_named(server: EndpointProcess) -> None:
    assert "certificate" in failure(endpoint(server, None))


def test_a_certificate_of_another_name_is_refused(server: EndpointProcess, authority: Authority) -> None:
    other = server.url.replace("127.0.0.1", "localhost")
    message = failure(endpoint(server, authority.ca, other))
    assert "certificate" in message
    assert "localhost" in message


def test_an_expired_certificate_is_refused(tmp_path: Path, authority: Authority) -> None:
    with secured(tmp_path, authority.issue("old", expired=True)) as process:
        message = failure(endpoint(process, authority.ca))
        assert "certificate" in message
        assert "expired" in message


def test_plain_http_at_the_tls_port_gets_a_clear_answer(server: EndpointProcess) -> None:
    plain = server.url.replace("https://", "http://")
    answer = requests.get(f"{plain}/yggdrasill/v1/health", timeout=10)
    assert error_of(answer) == (400, "ProtocolMismatch")
    assert "https://" in answer.json()["error"]["message"]


def test_old_protocols_are_refused(server: EndpointProcess, authority: Authority) -> None:
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLS"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises((ssl.SSLError, OSError)), socket.create_connection(("127.0.0.1", port), 5) as plain:
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def served_serial(process: EndpointProcess) -> str:
    port = int(process.url.rsplit(":", 1)[1])
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=10)


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path, authority: Authority) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def install(name: str) -> None:
        new_certificate, new_key = authority.issue(name)
        key.write_bytes(new_key.read_bytes())
        certificate.write_bytes(new_certificate.read_bytes())

    install("first")
    with secured(tmp_path / "data", (certificate, key)) as process:
        before = served_serial(process)
        certificate.write_text("half of a certificate", encoding="ascii")
        until(lambda: "The new certificate is not used" in process.log())
        assert served_serial(process) == before
        install("second")
        until(lambda: served_serial(process) != before)
        assert health(process, authority).status_code == 200


def test_silent_connections_do_not_keep_others_from_a_secured_endpoint(tmp_path: Path, authority: Authority) -> None:
    resource = pytest.importorskip("resource")
    import functools
    import subprocess

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 256))

    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(subprocess, "Popen", functools.partial(subprocess.Popen, preexec_fn=limit))
        process = stack.enter_context(secured(tmp_path, authority.issue("narrow")))
        port = int(process.url.rsplit(":", 1)[1])
        for _ in range(400):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
        started = time.perf_counter()
        assert health(process, authority).status_code == 200
        assert time.perf_counter() - started < 20.0
        assert process.log().count("connections, its limit") == 1


def test_a_key_of_another_certificate_stops_the_start(tmp_path: Path, authority: Authority) -> None:
    first, second = authority.issue("one"), authority.issue("two")
    with pytest.raises(InvalidArgument, match="Cannot use the certificate"):
        Certificate(first[0], second[1])
    with pytest.raises(InvalidArgument, match="Cannot use the certificate"):
        Certificate(tmp_path / "missing.pem", first[1])
    with pytest.raises(InvalidArgument, match="needs both a certificate and its key"):
        Settings(data_dir=tmp_path, tls_cert=first[0])


def test_a_handshake_that_never_comes_is_ended(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiohttp import web

    from yggdrasill.server_ext import tls
    from yggdrasill.server_ext.connections import ConnectionLimiter

    monkeypatch.setattr(tls, "_HANDSHAKE_SECONDS", 0.3)
    certificate = Certificate(*authority.issue("silent"))

    async def wait() -> bytes:
        limiter = ConnectionLimiter(8)
        runner = web.AppRunner(web.Application(middlewares=[limiter.track]))
        await runner.setup()
        assert runner.server is not None
        port = await limiter.listen(runner.server, "127.0.0.1", 0, certificate.context)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        limiter.close()
        await runner.cleanup()
        return data

    assert asyncio.run(wait()) == b""
