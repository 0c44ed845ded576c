"""Upload sessions: pieces sent twice, out of order, never finished, with wrong content, by two callers, over a restart."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from blake3 import blake3

from samples.endpoints import EndpointProcess
from samples.http_client import Http, error_of, until
from yggdrasill.errors import CorruptData, InvalidArgument, PayloadTooLarge, StorageFailed, UploadConflict
from yggdrasill.server_ext import upload_sessions
from yggdrasill.server_ext.upload_sessions import UploadSessions
from yggdrasill.values import EmbeddedStore, MemoryStore, SharedFolderStore, Writer
from yggdrasill.values.stores.base import StagingStore

MIB = 1 << 20
ADA = Writer("ada")


def name_of(data: bytes) -> str:
    return blake3(data).hexdigest()


def new_id() -> str:
    return uuid.uuid4().hex


# -- over HTTP --------------------------------------------------------------------------------------------------------


def put(http: Http, data: bytes, upload_id: str, start: int, stop: int, *, name: str | None = None) -> requests.Response:
    headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
    return http.put(f"/artifacts/{name or name_of(data)}/uploads/{upload_id}", data=data[start:stop], headers=headers)


def state(http: Http, data: bytes, upload_id: str) -> dict[str, object]:
    answer: dict[str, object] = http.get(f"/artifacts/{name_of(data)}/uploads/{upload_id}").json()
    return answer


def test_an_artifact_arrives_in_pieces(server: Http) -> None:
    data, upload_id = os.urandom(3 * MIB), new_id()
    assert state(server, data, upload_id) == {"offset": 0, "nbytes": None, "stored": False}
    for start in (0, MIB):
        answer = put(server, data, upload_id, start, start + MIB)
        assert (answer.status_code, answer.json()) == (200, {"offset": start + MIB, "stored": False})
    assert state(server, data, upload_id) == {"offset": 2 * MIB, "nbytes": 3 * MIB, "stored": False}
    answer = put(server, data, upload_id, 2 * MIB, 3 * MIB)
    assert (answer.status_code, answer.json()) == (201, {"offset": 3 * MIB, "stored": True})
    assert server.get(f"/artifacts/{name_of(data)}").content == data
    assert state(server, data, upload_id) == {"offset": 3 * MIB, "nbytes": 3 * MIB, "stored": True}
    assert put(server, data, upload_id, 0, MIB).json() == {"offset": 3 * MIB, "stored": True}


def test_a_piece_sent_twice_or_out_of_order_is_a_conflict_that_names_the_offset(server: Http) -> None:
    data, upload_id = os.urandom(3 * MIB), new_id()
    answer = put(server, data, upload_id, MIB, 2 * MIB)
    assert error_of(answer) == (409, "UploadConflict")
    assert answer.json()["error"]["details"]["offset"] == 0
    put(server, data, upload_id, 0, MIB)
    for start in (0, 2 * MIB):
        answer = put(server, data, upload_id, start, start + MIB)
        assert error_of(answer) == (409, "UploadConflict")
        assert answer.json()["error"]["details"]["offset"] == MIB
    assert put(server, data, upload_id, MIB, 3 * MIB).status_code == 201


def test_bytes_before_a_broken_connection_count(server: Http) -> None:
    data, upload_id = os.urandom(2 * MIB), new_id()
    host = server.process.url.removeprefix("http://")
    address, port = host.split(":")
    head = (
        f"PUT /yggdrasill/v1/artifacts/{name_of(data)}/uploads/{upload_id} HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {server.process.token}\r\nContent-Range: bytes 0-{len(data) - 1}/{len(data)}\r\n"
    )
    with socket.create_connection((address, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[: MIB + 77])
        until(lambda: state(server, data, upload_id)["offset"] != 0)
    until(lambda: state(server, data, upload_id)["offset"] == MIB + 77)
    assert put(server, data, upload_id, MIB + 77, len(data)).status_code == 201
    assert server.get(f"/artifacts/{name_of(data)}").content == data


def test_a_session_survives_a_restart(tmp_path: Path) -> None:
    process = EndpointProcess("restarted", tmp_path).start()
    try:
        http, data, upload_id = Http(process), os.urandom(2 * MIB), new_id()
        put(http, data, upload_id, 0, MIB)
        process.kill()
        process.start()
        assert state(http, data, upload_id) == {"offset": MIB, "nbytes": 2 * MIB, "stored": False}
        assert put(http, data, upload_id, MIB, 2 * MIB).status_code == 201
        assert http.get(f"/artifacts/{name_of(data)}").content == data
        assert list((tmp_path / "artifacts" / "uploads").iterdir()) == []
    finally:
        process.stop()


def test_wrong_content_is_corrupt_and_drops_the_session(server: Http) -> None:
    data, other, upload_id = os.urandom(2 * MIB), os.urandom(2 * MIB), new_id()
    put(server, data, upload_id, 0, MIB)
    assert error_of(put(server, other, upload_id, MIB, 2 * MIB, name=name_of(data))) == (400, "CorruptData")
    assert state(server, data, upload_id) == {"offset": 0, "nbytes": None, "stored": False}
    assert put(server, data, upload_id, 0, 2 * MIB).status_code == 201


def test_two_sessions_of_one_artifact_at_once(server: Http) -> None:
    data, first, second = os.urandom(2 * MIB), new_id(), new_id()
    for upload_id in (first, second):
        put(server, data, upload_id, 0, MIB)
    assert put(server, data, first, MIB, 2 * MIB).status_code == 201
    answer = put(server, data, second, MIB, 2 * MIB)
    assert (answer.status_code, answer.json()) == (200, {"offset": 2 * MIB, "stored": True})


def test_a_dropped_session_is_unknown(server: Http) -> None:
    data, upload_id = os.urandom(2 * MIB), new_id()
    put(server, data, upload_id, 0, MIB)
    path = f"{server.url}/artifacts/{name_of(data)}/uploads/{upload_id}"
    assert [server.session.delete(path).status_code for _ in range(2)] == [204, 204]
    assert state(server, data, upload_id) == {"offset": 0, "nbytes": None, "stored": False}


@pytest.mark.parametrize(
    "given", ["", "bytes 0-10", "bytes 5-2/10", "bytes 0-10/10", "bytes */10", "bytes 0-9/99999999999999999999", "x 0-9/10"]
)
def test_an_invalid_content_range_is_refused(server: Http, given: str) -> None:
    answer = server.put(f"/artifacts/{'0' * 64}/uploads/{new_id()}", data=b"0123456789", headers={"Content-Range": given})
    assert error_of(answer) == (400, "InvalidArgument")


def test_invalid_ids_and_lengths_are_refused(server: Http) -> None:
    headers = {"Content-Range": "bytes 0-9/20"}
    for path in (f"/artifacts/{'0' * 64}/uploads/..", f"/artifacts/{'0' * 64}/uploads/{'A' * 32}", f"/artifacts/x/uploads/{new_id()}"):
        assert server.put(path, data=b"0123456789", headers=headers).status_code in (400, 404, 405)
    path = f"/artifacts/{'0' * 64}/uploads/{new_id()}"
    assert error_of(server.put(path, data=b"012345678", headers=headers)) == (400, "InvalidArgument")
    assert error_of(server.put(path, data=b"", headers={"Content-Range": f"bytes 0-{65 * MIB}/{66 * MIB}"}))[0] in (400, 413)


# -- rules of the sessions --------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "embedded", "shared"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StagingStore]:
    if request.param == "memory":
        yield MemoryStore(quota_bytes=10_000)
        return
    opened = (EmbeddedStore if request.param == "embedded" else SharedFolderStore)(tmp_path, quota_bytes=10_000)
    yield opened
    opened.close()


def send(sessions: UploadSessions, data: bytes, upload_id: str, start: int, stop: int, writer: Writer = ADA) -> tuple[int, bool] | None:
    piece = sessions.begin(writer.principal, name_of(data), upload_id, start, stop, len(data))
    if piece is None:
        return None
    piece.write(data[start:stop])
    return piece.end(writer)


def test_a_session_takes_its_whole_room_from_its_first_byte(store: StagingStore) -> None:
    sessions, data = UploadSessions(store), os.urandom(6000)
    upload_id = new_id()
    assert send(sessions, data, upload_id, 0, 1) == (1, False)
    with pytest.raises(StorageFailed, match="6000 bytes are reserved"):
        store.put(bytes(5000))
    with pytest.raises(StorageFailed):
        send(sessions, os.urandom(5000), new_id(), 0, 1)
    assert send(sessions, data, upload_id, 1, 6000) == (6000, True)
    assert bytes(store.read(name_of(data))) == data
    store.put(bytes(10_000))


def test_a_session_that_is_never_finished_expires(store: StagingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions, data = UploadSessions(store), os.urandom(6000)
    send(sessions, data, new_id(), 0, 10)
    monkeypatch.setattr(upload_sessions, "EXPIRE_SECONDS", 0.05)
    time.sleep(0.1)
    sessions.expire()
    assert store.put(bytes(10_000))


def test_a_session_belongs_to_its_principal(store: StagingStore) -> None:
    sessions, data, upload_id = UploadSessions(store), os.urandom(4000), new_id()
    send(sessions, data, upload_id, 0, 2000)
    assert sessions.status("bob", name_of(data), upload_id) == (0, None, False)
    with pytest.raises(UploadConflict):
        send(sessions, data, upload_id, 2000, 4000, Writer("bob"))
    sessions.drop("bob", name_of(data), upload_id)
    assert sessions.status("ada", name_of(data), upload_id) == (2000, 4000, False)
    assert send(sessions, data, upload_id, 2000, 4000) == (4000, True)


def test_a_new_connection_ends_the_piece_of_a_lost_one(store: StagingStore) -> None:
    sessions, data, upload_id = UploadSessions(store), os.urandom(4000), new_id()
    lost = sessions.begin("ada", name_of(data), upload_id, 0, 4000, 4000)
    assert lost is not None
    lost.write(data[:1000])
    assert send(sessions, data, upload_id, 1000, 3000) == (3000, False)
    with pytest.raises(UploadConflict):
        lost.write(data[1000:2000])
    with pytest.raises(UploadConflict):
        lost.end(ADA)
    assert send(sessions, data, upload_id, 3000, 4000) == (4000, True)


def test_more_bytes_than_announced_another_total_and_a_size_over_the_limit_are_refused(store: StagingStore) -> None:
    sessions, data, upload_id = UploadSessions(store), os.urandom(4000), new_id()
    piece = sessions.begin("ada", name_of(data), upload_id, 0, 1000, 4000)
    assert piece is not None
    with pytest.raises(CorruptData, match="more bytes than its Content-Range"):
        piece.write(data[:1001])
    piece.close()
    with pytest.raises(InvalidArgument, match="has 4000 bytes"):
        sessions.begin("ada", name_of(data), upload_id, 0, 1000, 5000)
    store.max_artifact_bytes = 100
    with pytest.raises(PayloadTooLarge):
        sessions.begin("ada", name_of(data), new_id(), 0, 1000, 4000)


def test_files_that_are_not_sessions_and_old_sessions_are_removed_at_the_start(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "something").write_bytes(b"x")
    old = folder / f"{'0' * 64}-{'0' * 32}-10-{'0' * 16}.part"
    old.write_bytes(b"x")
    os.utime(old, (1.0, 1.0))
    UploadSessions(store)
    assert list(folder.iterdir()) == []
    store.close()


def test_what_a_session_stores_names_its_principal(tmp_path: Path) -> None:
    store, data = EmbeddedStore(tmp_path), os.urandom(100)
    send(UploadSessions(store), data, new_id(), 0, 100)
    found = store.stat(name_of(data))
    assert found is not None
    assert found.writer == ADA
    store.close()
