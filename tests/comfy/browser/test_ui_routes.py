"""The editor's routes, requested by other programs: access control, and data that is never returned."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from samples.comfy import Server
from samples.comfy_graphs import graph_input, graph_output, node, token_of
from yggdrasill.remote.endpoint import pairing_line

EDITOR = {"X-Yggdrasill-Editor": "1"}
PROMPT = {"1": graph_input("image", "IMAGE"), "2": node("ImageInvert", image=("1", 0)), "3": graph_output("image", ("2", 0), "IMAGE")}
GIVING = ("endpoints", "endpoint?name=studio", "status", "graphs", "contract?graph=a", "placements", "jobs", "run", "settings")
TAKING: dict[str, Any] = {
    "serve": {"graph_id": "intruder", "prompt": PROMPT},
    "pair": {"line": "http://127.0.0.1:9"},
    "pairing": {},
    "remove": {"name": "closed"},
    "place": {"key": "a", "place": "studio"},
    "cancel": {"job_id": "a"},
    "fetch": {"endpoint": "studio", "url": "http://127.0.0.1:9/a.ckpt", "folder": "checkpoints", "name": "a.ckpt"},
    "lists": {"nodes": {}, "workflow": {}},
    "preflight": {"prompt": {}, "workflow": {}},
}
"""What is posted to each route that changes something."""


def ask(server: Server, path: str, headers: dict[str, str], body: Any = None) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of a response."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{server.url}/yggdrasill/ui/{path}", data=data, headers={"Content-Type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"{}")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {**EDITOR, "Origin": "http://evil.example"},
        {**EDITOR, "Sec-Fetch-Site": "cross-site"},
        {**EDITOR, "Sec-Fetch-Site": "same-site"},
        {**EDITOR, "Host": "evil.example"},
    ],
    ids=["no header", "other origin", "cross-site", "same-site", "other host"],
)
@pytest.mark.parametrize("path", [*GIVING, *TAKING])
def test_only_pages_of_this_server_get_answers(pair: Any, path: str, headers: dict[str, str]) -> None:
    registry = pair.here.base / "user" / "yggdrasill" / "endpoints.yaml"
    before = registry.read_text(encoding="utf-8")
    assert ask(pair.here, path, headers, TAKING.get(path))[0] == 403
    assert registry.read_text(encoding="utf-8") == before


def test_no_answer_contains_a_token_or_a_full_address(pair: Any) -> None:
    """Host and port are returned, so that users know which machine it is. The endpoint ``closed`` refuses connections."""
    pair.studio.deploy("known", PROMPT)
    answers = [ask(pair.here, path.replace("graph=a", "endpoint=studio&graph=known"), EDITOR) for path in GIVING]
    assert [status for status, _ in answers] == [200] * len(GIVING)
    text = json.dumps(answers)
    assert token_of(pair.here) not in text
    assert token_of(pair.there) not in text
    assert "nothing answers at its url" in text
    assert pair.there.url not in text
    assert "http://127.0.0.1:9" not in text
    assert pair.there.url.removeprefix("http://") in text


def test_the_servers_token_is_only_in_the_pairing_line(pair: Any) -> None:
    status, answer = ask(pair.here, "pairing", EDITOR, {})
    assert (status, answer["line"]) == (200, pairing_line(pair.here.url, token_of(pair.here)))


def test_a_placement_is_added_changed_and_removed(pair: Any) -> None:
    registry = pair.here.base / "user" / "yggdrasill" / "endpoints.yaml"
    before = registry.read_text(encoding="utf-8")
    registry.write_text("# which part runs where\n" + before, encoding="utf-8")
    try:
        for place, graphs in (("studio", {"A part": "studio"}), ("local", {"A part": "local"}), (None, {})):
            status, answer = ask(pair.here, "place", EDITOR, {"key": "A part", "place": place})
            assert (status, answer["graphs"]) == (200, graphs)
            assert ask(pair.here, "placements", EDITOR)[1]["graphs"] == graphs
        status, answer = ask(pair.here, "place", EDITOR, {"key": "A part", "place": "nowhere"})
        assert (status, answer["error"]["type"]) == (404, "UnknownEndpoint")
        assert registry.read_text(encoding="utf-8").startswith("# which part runs where\n")
    finally:
        registry.write_text(before, encoding="utf-8")


def test_the_queue_policy_changes_at_once_and_is_stored_with_other_lines_unchanged(pair: Any) -> None:
    file = pair.here.base / "user" / "yggdrasill" / "settings.yaml"
    assert ask(pair.here, "settings", EDITOR)[1] == {"queue": "fifo"}
    file.write_text("# mine\nslots: 2\nqueue: fifo   # for now\n", encoding="utf-8")
    assert ask(pair.here, "settings", EDITOR, {"queue": "front"}) == (200, {"queue": "front"})
    assert ask(pair.here, "settings", EDITOR)[1] == {"queue": "front"}
    assert file.read_text(encoding="utf-8") == "# mine\nslots: 2\nqueue: front   # for now\n"
    assert ask(pair.here, "settings", EDITOR, {"queue": "last"})[0] == 400
    file.unlink()
    assert ask(pair.here, "settings", EDITOR, {"queue": "fifo"})[0] == 200
    assert file.read_text(encoding="utf-8") == "queue: fifo\n"
    file.unlink()


def test_an_unreadable_registry_is_not_changed(pair: Any) -> None:
    registry = pair.here.base / "user" / "yggdrasill" / "endpoints.yaml"
    before = registry.read_text(encoding="utf-8")
    registry.write_text("graphs: {a: nowhere", encoding="utf-8")
    try:
        status, answer = ask(pair.here, "place", EDITOR, {"key": "a", "place": "local"})
        assert (status, answer["error"]["type"]) == (400, "InvalidConfig")
        assert registry.read_text(encoding="utf-8") == "graphs: {a: nowhere"
    finally:
        registry.write_text(before, encoding="utf-8")


def test_errors_are_returned_with_a_message(pair: Any) -> None:
    status, answer = ask(pair.here, "graphs?endpoint=studoi", EDITOR)
    assert (status, answer["error"]["type"]) == (404, "UnknownEndpoint")
    assert "studio" in answer["error"]["message"]
    status, answer = ask(pair.here, "graphs?endpoint=closed", EDITOR)
    assert (status, answer["error"]["type"]) == (502, "EndpointUnreachable")
    assert "endpoint 'closed': nothing answers" in answer["error"]["message"]
    assert "127.0.0.1" not in json.dumps(answer)
    status, answer = ask(pair.here, "contract?endpoint=auto&graph=nowhere", EDITOR)
    assert (status, answer["error"]["type"]) == (400, "InvalidArgument")
    status, answer = ask(pair.here, "contract?endpoint=studio&graph=nowhere", EDITOR)
    assert (status, answer["error"]["type"]) == (404, "UnknownGraph")


def test_a_workflow_without_outputs_or_of_invalid_form_is_not_served(pair: Any) -> None:
    outputless = {key: PROMPT[key] for key in "12"}
    for prompt in (outputless, {}, {"1": 5}, {"1": {"class_type": "A", "inputs": {"a": ["9", 0]}}}):
        status, answer = ask(pair.here, "serve", EDITOR, {"graph_id": "odd", "prompt": prompt})
        assert status == 400, answer
    assert ask(pair.here, "serve", EDITOR, {"graph_id": "", "prompt": PROMPT})[0] == 400
    assert ask(pair.here, "serve", EDITOR, {"graph_id": "odd", "prompt": PROMPT, "token": "x"})[0] == 400


def test_a_served_name_is_replaced_only_on_request(pair: Any) -> None:
    other = {**PROMPT, "3": graph_output("other", ("2", 0), "IMAGE")}
    assert ask(pair.here, "serve", EDITOR, {"graph_id": "mine", "prompt": PROMPT})[1]["created"]
    assert not ask(pair.here, "serve", EDITOR, {"graph_id": "mine", "prompt": PROMPT})[1]["created"]
    status, answer = ask(pair.here, "serve", EDITOR, {"graph_id": "mine", "prompt": other})
    assert (status, answer["error"]["type"]) == (400, "DuplicateName")
    status, answer = ask(pair.here, "serve", EDITOR, {"graph_id": "mine", "prompt": other, "replace": True})
    assert (status, answer["outputs"]) == (200, ["other"])


def test_an_endpoint_is_added_only_if_it_answers_and_its_name_is_free(pair: Any) -> None:
    registry = pair.here.base / "user" / "yggdrasill" / "endpoints.yaml"
    before = registry.read_text(encoding="utf-8")
    wrong = {"name": "second", "url": pair.there.url, "token": "x" * 20}
    status, answer = ask(pair.here, "endpoints", EDITOR, wrong)
    assert (status, answer["error"]["type"]) == (401, "AccessDenied")
    right = {"name": "second", "url": pair.there.url, "token": token_of(pair.there)}
    for change, kind in (
        ({"url": "http://127.0.0.1:9"}, "EndpointUnreachable"),
        ({"url": "ftp://127.0.0.1"}, "InvalidArgument"),
        ({"name": "studio"}, "DuplicateName"),
        ({"name": "a/b"}, "InvalidConfig"),
    ):
        status, answer = ask(pair.here, "endpoints", EDITOR, {**right, **change})
        assert (status >= 400, answer["error"]["type"]) == (True, kind)
    assert registry.read_text(encoding="utf-8") == before
    assert ask(pair.here, "endpoints", {}, right)[0] == 403
    assert ask(pair.here, "endpoints", EDITOR, right)[0] == 201
    assert "second" in ask(pair.here, "endpoints", EDITOR)[1]["endpoints"]
    registry.write_text(before, encoding="utf-8")
