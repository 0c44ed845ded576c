"""The editor's routes, requested by other programs: access control, and data that is never returned."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samples.comfy import Server
from samples.comfy_graphs import graph_input, graph_output, node, token_of
from yggdrasill.remote.endpoint import pairing_line

EDITOR = {"X-Yggdrasill-Editor": "1"}
PROMPT = {"1": graph_input("image", "IMAGE"), "2": node("ImageInvert", image=("1", 0)), "3": graph_output("image", ("2", 0), "IMAGE")}
PART = {"graph": "", "kind": "group", "id": "1", "title": "A part"}
GIVING = (
    "endpoints",
    "endpoint?name=studio",
    "status",
    "graphs",
    "contract?graph=a",
    "placements",
    "uses?name=studio",
    "jobs",
    "run",
    "settings",
)
TAKING: dict[str, Any] = {
    "serve": {"graph_id": "intruder", "prompt": PROMPT},
    "pair": {"line": "http://127.0.0.1:9"},
    "pairing": {},
    "remove": {"name": "closed"},
    "place": {"workflow": "a", "parts": [PART], "place": "studio"},
    "copied": {"workflow": "a", "copy_id": "b"},
    "signs": {"workflow": {}},
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
    assert not registry.with_name("placements.json").exists()


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


@pytest.fixture
def placements(pair: Any) -> Iterator[Path]:
    """The file with the placements of workflows; removed afterwards."""
    file: Path = pair.here.base / "user" / "yggdrasill" / "placements.json"
    yield file
    file.unlink(missing_ok=True)


def drawn(workflow_id: str) -> dict[str, Any]:
    """Return the workflow of `PROMPT` with a group around node 2, titled as the editor does."""
    nodes = [
        {"id": number, "type": PROMPT[str(number)]["class_type"], "pos": [0, 300 * number], "size": [100, 100]} for number in (1, 2, 3)
    ]
    return {"id": workflow_id, "nodes": nodes, "links": [], "groups": [{"id": 1, "title": "Group", "bounding": [-10, 550, 200, 200]}]}


def test_a_placement_belongs_to_one_workflow_and_leaves_the_registry_as_it_is(pair: Any, placements: Path) -> None:
    registry = placements.with_name("endpoints.yaml")
    before = registry.read_bytes()
    for place, signs in (("studio", {"": {"2": {"places": ["studio"], "partly": False}}}), ("local", {}), (None, {})):
        assert ask(pair.here, "place", EDITOR, {"workflow": "a", "name": "first", "parts": [PART], "place": place})[0] == 200
        answer = ask(pair.here, "signs", EDITOR, {"workflow": drawn("a"), "prompt": PROMPT})[1]
        assert (answer["problem"], answer["signs"]) == (None, signs)
        (part,) = answer["parts"]
        assert part == {
            **PART, "title": "Group", "name": "Group", "places": ["studio"] if signs else [], "stored": place is not None, "otherwise": [],
        }  # fmt: skip
        assert ask(pair.here, "signs", EDITOR, {"workflow": drawn("b"), "prompt": PROMPT})[1]["signs"] == {}
        assert ask(pair.here, "placements?workflow=a", EDITOR)[1]["stored"] is (place is not None)
    status, answer = ask(pair.here, "place", EDITOR, {"workflow": "a", "parts": [PART], "place": "nowhere"})
    assert (status, answer["error"]["type"]) == (404, "UnknownEndpoint")
    assert registry.read_bytes() == before


def test_signs_of_a_workflow_that_would_be_refused_have_the_reason(pair: Any, placements: Path) -> None:
    ask(pair.here, "place", EDITOR, {"workflow": "a", "parts": [PART], "place": "studio"})
    placements.write_text(placements.read_text(encoding="utf-8").replace("studio", "cellar"), encoding="utf-8")
    answer = ask(pair.here, "signs", EDITOR, {"workflow": drawn("a"), "prompt": PROMPT})[1]
    assert "Unknown endpoint 'cellar'" in answer["problem"]
    assert [part["places"] for part in answer["parts"]] == [["cellar"]]
    assert ask(pair.here, "signs", EDITOR, {"workflow": {"id": 5, "nodes": 7}})[1]["parts"] == []


def test_an_endpoint_is_removed_with_the_placements_of_workflows_on_request(pair: Any, placements: Path) -> None:
    registry = placements.with_name("endpoints.yaml")
    before = registry.read_text(encoding="utf-8")
    try:
        ask(pair.here, "place", EDITOR, {"workflow": "a", "name": "first", "parts": [PART], "place": "closed"})
        assert ask(pair.here, "copied", EDITOR, {"workflow": "a", "copy_id": "b", "name": "second"})[1] == {"copied": True}
        uses = {"workflows": [{"name": name, "parts": ["A part"]} for name in ("first", "second")], "others": 0}
        assert ask(pair.here, "uses?name=closed", EDITOR)[1] == uses
        status, answer = ask(pair.here, "remove", EDITOR, {"name": "closed"})
        assert status == 400
        assert "still runs 'A part' of workflow 'first'; 'A part' of workflow 'second'; place those" in answer["error"]["message"]
        assert registry.read_text(encoding="utf-8") == before
        assert ask(pair.here, "remove", EDITOR, {"name": "closed", "drop": True})[0] == 200
        assert "closed" not in registry.read_text(encoding="utf-8")
        assert ask(pair.here, "placements?workflow=a", EDITOR)[1]["stored"] is False
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
        status, answer = ask(pair.here, "remove", EDITOR, {"name": "studio"})
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
