"""Errors as a client sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yggdrasill import errors
from yggdrasill.errors import BlockFailed, InvalidArgument, YggdrasillError
from yggdrasill.worker.failures import Scrubber, code_of

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, YggdrasillError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_has_a_code(kind: type[YggdrasillError]) -> None:
    assert code_of(kind("x")).islower()


def test_a_code_in_the_details_counts() -> None:
    assert code_of(InvalidArgument("x", code="no_bucket")) == "no_bucket"
    assert code_of(InvalidArgument("x", code="Not A Code")) == "invalid_input"


def test_paths_of_the_server_are_replaced(tmp_path: Path) -> None:
    scrubber = Scrubber({"workspace": tmp_path / "work", "home": Path.home()})
    text = scrubber.text(
        f"cannot read {tmp_path}/work/output/a.png, '/usr/lib/python3/x.py' or /etc/passwd; see https://example.com/usr/x and a/b/c"
    )
    assert text == "cannot read [workspace]/output/a.png, '[path]' or [path]; see https://example.com/usr/x and a/b/c"
    assert scrubber.text(r"C:\Users\me\x.txt is gone") == "[path] is gone"


def test_secrets_are_replaced_in_texts_and_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", "planted-secret-one")
    key = tmp_path / "key.json"
    key.write_text(json.dumps({"private_key": "-----BEGIN\nplanted-secret-of-the-key\n-----END", "client_email": "a@b"}), encoding="utf-8")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    scrubber = Scrubber({})
    scrubber.learn(["planted-secret-two"])
    found = scrubber.value({"planted-secret-one": ["planted-secret-two", {"x": "planted-secret-of-the-key"}], "n": 1})
    assert "planted" not in json.dumps(found)
    assert scrubber.text("GET https://user:planted@example.com/a?sig=planted failed") == "GET https://example.com/a failed"


def test_a_failure_has_message_code_and_bounded_details(tmp_path: Path) -> None:
    scrubber = Scrubber({"workspace": tmp_path})
    found = scrubber.failure(BlockFailed(f"node 3 failed: {tmp_path}/x {'y' * 20_000}", node="3", endpoint=str(tmp_path)))
    assert found["code"] == "node_failed"
    assert found["details"] == {"node": "3"}
    assert len(found["error"]) < 9000
    assert str(tmp_path) not in json.dumps(found)
    assert "details" not in scrubber.failure(InvalidArgument("x", missing=["y" * 100] * 1000))


def test_an_unexpected_exception_is_named_by_its_class_alone() -> None:
    found = Scrubber({}).failure(RuntimeError("/root/secret planted"))
    assert found["code"] == "internal"
    assert "planted" not in found["error"]
    assert "RuntimeError" in found["error"]
