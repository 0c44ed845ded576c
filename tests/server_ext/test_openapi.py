"""The OpenAPI document is complete, and requests that it describes, valid or not, get only the answers that it describes.

Each of the last two tests sends 300 requests, and 20,000 in `make faults`; ``YGGDRASILL_FUZZ_REQUESTS`` sets another number.
"""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from samples.endpoints import EndpointProcess
from samples.http_client import BASE, Http, one_node
from yggdrasill.protocol.statuses import STATUS
from yggdrasill.server_ext.openapi import openapi_document
from yggdrasill.server_ext.route_table import ROUTES
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.wire import pack

_GIVEN = os.environ.get("YGGDRASILL_FUZZ_REQUESTS")
#: The same requests in every run of the suite, and other ones in every run of `make faults`.
REQUESTS = pytest.mark.parametrize(
    "requests", [int(_GIVEN or 300), pytest.param(int(_GIVEN or 20_000), marks=pytest.mark.faults)], ids=["short", "long"]
)
#: Streams without an end; tests/server_ext/test_events.py covers them.
ENDLESS = [f"{BASE}/events", f"{BASE}/jobs/{{job_id}}/events"]


def fuzzing(requests: int, request: pytest.FixtureRequest) -> settings:
    """Return the settings of hypothesis for a number of requests."""
    return settings(
        max_examples=requests,
        deadline=None,
        database=None,
        derandomize=request.node.get_closest_marker("faults") is None,
        print_blob=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    """Return an endpoint with a graph and a finished job."""
    process = EndpointProcess("attacked", tmp_path_factory.mktemp("attacked"), plugins=["samples.served_blocks"], grace=0.5).start()
    http = Http(process)
    http.deploy("double", one_node("double"))
    yield http
    process.stop()
    # a request whose handler failed; failed jobs are logged in another form
    assert not re.findall(r"ERROR \S+ (?:GET|PUT|POST|DELETE) .*", process.log())


def test_every_operation_has_its_parameters_bodies_statuses_and_security() -> None:
    document = openapi_document()
    for route in ROUTES:
        operation = document["paths"][BASE + route.path][route.method.lower()]
        names = {(entry["in"], entry["name"]) for entry in operation["parameters"]}
        assert ("header", "X-Yggdrasill-Protocol") in names
        assert {name for place, name in names if place == "path"} == {part[1:-1] for part in route.path.split("/") if part.startswith("{")}
        assert operation["security"]
        assert ("requestBody" in operation) == (route.body is not None or route.bytes_in is not None)
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert response == {"$ref": f"#/components/responses/{status}"}
                named = document["components"]["responses"][status]
                assert named["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorModel"}
    for status in ("429", "503"):
        assert document["components"]["responses"][status]["headers"]["Retry-After"]["required"]


def test_every_status_of_an_error_is_described() -> None:
    described = {int(status) for status in openapi_document()["components"]["responses"]}
    assert set(STATUS.values()) <= described


@REQUESTS
def test_requests_of_the_document_get_only_the_answers_of_the_document(
    attacked: Http, requests: int, request: pytest.FixtureRequest
) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("schemathesis needs Python 3.11")
    import schemathesis
    from schemathesis.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )
    from schemathesis.generation import GenerationMode

    schema = schemathesis.openapi.from_dict(attacked.get("/openapi.json").json()).exclude(path=ENDLESS)
    operations = [result.ok() for result in schema.get_all_operations()]
    cases = st.one_of(
        operation.as_strategy(generation_mode=mode)
        for operation in operations
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    )
    checks = [content_type_conformance, response_headers_conformance, response_schema_conformance, status_code_conformance]
    headers = {"Authorization": f"Bearer {attacked.process.token}"}
    job = attacked.start("double", {"x": torch.ones(1)})
    names = {"graph_id": "double", "job_id": job}
    seen: set[tuple[str, int]] = set()

    @fuzzing(requests, request)
    @given(case=cases, existing=st.booleans())
    def attack(case: Any, existing: bool) -> None:
        if existing and case.method != "DELETE":
            for name in names.keys() & (case.path_parameters or {}).keys():
                case.path_parameters[name] = names[name]
        if isinstance(case.body, dict) and "wait" in case.body:
            case.body["wait"] = 0.0
        if case.query and "wait" in case.query:
            case.query["wait"] = "0"
        answer = case.call(base_url=attacked.process.url, headers=headers, timeout=30)
        assert answer.status_code < 500 or answer.status_code == 507, (case.as_curl_command(), answer.text)
        case.validate_response(answer, checks=checks)
        seen.add((case.operation.label, answer.status_code))

    attack()
    assert attacked.get("/health").status_code == 200
    # otherwise the requests of the document would not be those that the endpoint accepts
    assert len({label for label, status in seen if status < 300}) >= 8


def mutated(value: Any, draw: Any) -> Any:
    """Return a JSON value with a random part of it replaced, removed, doubled or nested."""
    junk: st.SearchStrategy[Any] = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(min_value=-(2**70), max_value=2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=20),
        st.sampled_from(["$t", "$dict", "$set", "$bytes", "$tensor", "\ud83d", "0" * 64, "../../etc/passwd", "http://127.0.0.1:1/"]),
        st.lists(st.integers(), max_size=3),
        st.dictionaries(st.text(max_size=8), st.integers(), max_size=3),
    )
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        name = draw(st.sampled_from(sorted(value)))
        how = draw(st.integers(0, 9))
        if how == 0:
            return {key: item for key, item in value.items() if key != name}
        if how == 1:
            return {**value, draw(st.text(max_size=8)): value[name]}
        return {**value, name: mutated(value[name], draw)}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        index = draw(st.integers(0, len(value) - 1))
        how = draw(st.integers(0, 9))
        if how == 0:
            return value[:index] + value[index + 1 :]
        if how == 1:
            return [*value, value[index]]
        return [*value[:index], mutated(value[index], draw), *value[index + 1 :]]
    if isinstance(value, str) and value and draw(st.booleans()):
        index = draw(st.integers(0, len(value) - 1))
        return value[:index] + draw(st.characters()) + value[index + 1 :]
    if draw(st.integers(0, 4)) == 0:
        nested = value
        for _ in range(draw(st.sampled_from([1, 10, 300]))):
            nested = [nested]
        return nested
    return draw(junk)


@REQUESTS
def test_mutated_envelopes_get_only_errors_of_the_project(attacked: Http, requests: int, request: pytest.FixtureRequest) -> None:
    # a graph that no other test replaces
    attacked.deploy("mutated", one_node("double"))
    store = MemoryStore()
    values = {"x": torch.arange(6.0)}, {"x": {1: b"abc", "b": (1, 2.5, None), "c": {1, 2}}}, {"x": torch.zeros(400_000)}
    envelopes = []
    for value in values:
        with pack(value, store) as packed:
            envelopes.append(packed.wire)

    @fuzzing(requests, request)
    @given(data=st.data())
    def attack(data: st.DataObject) -> None:
        wire: Any = data.draw(st.sampled_from(envelopes))
        for _ in range(data.draw(st.integers(1, 3))):
            wire = mutated(wire, data.draw)
        body = {"key": uuid.uuid4().hex, "inputs": wire, "wait": 5.0}
        answer = attacked.post("/graphs/mutated/jobs", json=body)
        found = answer.json()
        error = found["error"]
        if answer.status_code >= 400:
            assert answer.status_code in (400, 404, 409, 413, 422, 429, 507), answer.text
        else:
            assert answer.status_code in (200, 202)
            assert found["status"] in ("COMPLETED", "FAILED", "IN_QUEUE", "IN_PROGRESS", "STAGING", "WAITING_INPUTS")
        assert error is None or (set(error) == {"type", "message", "details"} and error["type"] != "EndpointFailed"), answer.text

    attack()
    assert attacked.run("mutated", {"x": torch.ones(1)})["y"].item() == 2.0
