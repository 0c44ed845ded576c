"""Secrets in the environments and settings of a gateway, a worker and endpoints stay out of every log, row, answer, event, webhook and file.

One run of each part goes through its main paths and its errors; then everything that it left behind is searched.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from samples.endpoints import Cutter, EndpointProcess
from samples.gateways import GatewayProcess
from samples.http_client import GateFile, Http, one_node, until
from samples.secret_scan import find, forms, scan_folder
from samples.serverless import JOBS_PROGRAM, environment_of
from samples.tiny_trainer import toolkit
from yggdrasill.remote import EndpointRegistry

pytestmark = pytest.mark.timeout(300)

FAR = 90.0
#: No secrets: the processes of the tests listen on this machine only.
SECRETS = {
    "endpoint token": "planted+endpoint/token=0815~4711",
    "gateway token": "planted+gateway/token=0815~4711",
    "caller token": "planted+caller/token=0815~4711",
    "webhook secret": "planted+webhook/secret=0815~4711",
    "database password": "planted+database/password=0815~4711",
    "hub token": "hf_planted+hub/token=0815~4711",
    "store key": "AKIAPLANTEDSTOREKEY1",
    "store secret": "planted+store/secret=0815~4711",
    "google key": "planted+google/private+key=0815~4711",
    "service key": "planted+service/key=0815~4711",
}
ENVIRONMENT = {
    "HF_TOKEN": SECRETS["hub token"],
    "BUCKET_ACCESS_KEY_ID": SECRETS["store key"],
    "BUCKET_SECRET_ACCESS_KEY": SECRETS["store secret"],
    "YGGDRASILL_WEBHOOK_SECRET": SECRETS["webhook secret"],
    "YGGDRASILL_TEST_API_KEY": SECRETS["service key"],
    "PLANTED_DATABASE_PASSWORD": SECRETS["database password"],
    "CALLER_TOKEN": SECRETS["caller token"],
}


class Receiver:
    """A server that keeps the webhooks that it receives."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append(bytes(self.headers) + b"\n\n" + body)
                self.send_response(500 if len(receiver.received) == 1 else 200)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Run:
    """A gateway before an endpoint, with planted secrets. ``heard`` is all that its callers and receivers got."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.heard: list[bytes] = []
        self.receiver = Receiver()
        self.endpoint = EndpointProcess(
            "forge", folder / "forge", token=SECRETS["endpoint token"], plugins=["samples.served_blocks"], slots=2
        )
        self.endpoint.start()
        for name, inputs in {"double": ("x",), "fail": ("x",), "leak": ("x",), "gate": ("path", "x")}.items():
            Http(self.endpoint).deploy(name, one_node(name, inputs))
        Http(self.endpoint).deploy("noise", one_node("noise", (), ("noise",), shape=[20_000]))
        given = {"YGGDRASILL_TOKEN": SECRETS["gateway token"]}
        self.gateway = GatewayProcess(
            folder / "gateway", [], pools=["pool"], private_webhooks=True, webhook_delays=[0.1, 0.1, 0.1], environment=given, **settings
        )
        registry = EndpointRegistry()
        registry.add("forge", self.endpoint.url, token=SECRETS["endpoint token"])
        registry.to_yaml(folder / "gateway" / "endpoints.yaml")
        self.gateway.session.headers["Authorization"] = f"Bearer {SECRETS['gateway token']}"
        self.gateway.session.hooks["response"].append(self._hear)
        self.gateway.start()
        self.listening = threading.Thread(target=self._listen, daemon=True)
        self.listening.start()

    def _hear(self, response: requests.Response, **_: Any) -> None:
        self.heard.append(repr(dict(response.headers)).encode() + b"\n" + response.content)

    def _listen(self) -> None:
        """Read the events of all jobs until the gateway ends."""
        headers = {"Authorization": f"Bearer {SECRETS['gateway token']}", "Last-Event-ID": "0"}
        with (
            suppress(requests.RequestException),
            requests.get(self.gateway.url + "/v1/events", headers=headers, stream=True, timeout=60) as answer,
        ):
            for chunk in answer.iter_content(1):
                self.heard.append(chunk)

    def raw(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request without the session's token."""
        answer = requests.request(method, self.gateway.url + path, timeout=60, **options)
        self._hear(answer)
        return answer

    def close(self) -> None:
        self.gateway.stop()
        self.endpoint.stop()
        self.listening.join(30)
        self.receiver.close()
        self.heard += self.receiver.received

    def main_paths(self) -> None:
        gateway = self.gateway
        assert gateway.run("double", {"x": 2}, webhook=self.receiver.url)["status"] == "COMPLETED"
        described = gateway.run("noise", seed=1)["output"]["noise"]
        assert gateway.session.get(described["url"], timeout=60).status_code == 200
        steps = {"one": {"graph": "double", "inputs": {"x": 1}}, "two": {"graph": "double", "inputs": {"x": {"from": "one.y"}}}}
        answer = gateway.post("/v1/workflows", {"workflow": {"steps": steps, "outputs": {"y": "two.y"}}, "wait": 30})
        assert answer.json()["status"] == "COMPLETED"
        assert gateway.post("/v2/double/runsync", {"input": {"x": 3}}).json()["status"] == "COMPLETED"
        job = gateway.post("/v2/pool/run", {"input": {"x": 3}}).json()["id"]
        gateway.get("/v2/pool/job-take/w1?gpu=none")
        gateway.post(f"/v2/pool/job-done/w1/{job}?gpu=none", {"output": 1})
        for path in ("/", "/healthz", "/v1/jobs", "/v1/queue", "/v1/endpoints", "/v1/checkpoints", "/v1/health", f"/v2/pool/status/{job}"):
            assert gateway.get(path).status_code == 200, path

    def error_paths(self) -> None:
        gateway, secrets = self.gateway, list(SECRETS.values())
        assert gateway.run("fail", {"x": 1}, webhook=self.receiver.url)["status"] == "FAILED"
        leaked = gateway.run("leak", {"x": 1}, webhook=self.receiver.url)
        assert "[secret]" in leaked["error"]["message"]
        self.worker_errors()
        for body in ({"graph": "nope"}, {"graph": "double"}, {"workflow": {"1": {"class_type": "Nope", "inputs": {}}}}, {"mood": 1}):
            assert gateway.post("/v1/workflows", body).status_code >= 400
        # what other callers send is not repeated to them, or to the log
        for secret in secrets:
            assert (
                self.raw(
                    "GET", "/v1/jobs", headers={"Authorization": f"Basic {base64.b64encode(f':{secret}'.encode()).decode()}"}
                ).status_code
                == 401
            )
            for name in ("token", "api_key", "access_token"):
                answer = self.raw("GET", f"/v1/jobs?{name}={urllib.parse.quote(secret, safe='')}")
                assert answer.status_code in (400, 401, 403)
        assert self.raw(
            "POST", "/v1/workflows", headers={"Authorization": f"Bearer {SECRETS['endpoint token']}"}, data=b"{"
        ).status_code in (401, 429)
        url = f"http://user:{urllib.parse.quote(SECRETS['caller token'], safe='')}@127.0.0.1/hook"
        assert gateway.post("/v1/workflows", {"graph": "double", "inputs": {"x": 1}, "webhook": url}).status_code == 400

    def worker_errors(self) -> None:
        """Let workers report errors and progress that contain the secrets of the gateway, as a worker of the same machine may."""
        gateway = self.gateway
        for name in ("gateway token", "endpoint token", "webhook secret", "hub token", "store secret"):
            secret = SECRETS[name]
            encoded = base64.b64encode(secret.encode()).decode()
            text = f"GET https://host/?key={urllib.parse.quote(secret, safe='')} with {secret} and Basic {encoded} failed"
            for error in (
                text,
                json.dumps({"error_type": "<class 'ValueError'>", "error_message": text, "error_traceback": text, "hostname": text}),
            ):
                job = gateway.post("/v2/pool/run", {"input": {}}).json()["id"]
                gateway.get("/v2/pool/job-take/w1?gpu=none")
                gateway.post(f"/v2/pool/job-done/w1/{job}?gpu=none", {"status": "IN_PROGRESS", "output": {"text": text}})
                gateway.post(f"/v2/pool/job-stream/w1/{job}?gpu=none", {"output": {"text": text}})
                gateway.get(f"/v2/pool/stream/{job}")
                gateway.post(f"/v2/pool/job-done/w1/{job}?gpu=none", {"error": error})
                assert "[secret]" in gateway.get(f"/v2/pool/status/{job}").json()["error"]

    def losses(self, gate: GateFile) -> None:
        """Lose the endpoint and the gateway while a job runs, and start them again."""
        job = self.gateway.submit("gate", gate.inputs(x=5))["job_id"]
        gate.wait_begun()
        self.endpoint.kill()
        until(lambda: not self.gateway.get("/v1/endpoints").json()["endpoints"][0]["up"], FAR)
        self.endpoint.start()
        until(lambda: self.gateway.get("/v1/endpoints").json()["endpoints"][0]["up"], FAR)
        self.gateway.kill()
        self.gateway.start()
        gate.open()
        until(lambda: self.gateway.status(job) == "COMPLETED", FAR)

    def check(self) -> None:
        """Search what was heard, and all files."""
        heard = [found for chunk in [b"".join(self.heard)] for found in find(chunk, SECRETS)]
        assert not heard
        findings, count = scan_folder(self.folder, SECRETS)
        assert not findings
        assert count > 10


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant the secrets in the environment of what a test starts."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("secret", SECRETS)
def test_the_search_finds_every_form(secret: str) -> None:
    text = SECRETS[secret]
    encoded = [base64.b64encode(before + text.encode() + b"behind").decode() for before in (b"", b"a", b"ab", b"user:")]
    encoded += [base64.urlsafe_b64encode(f"user:{text}".encode()).decode()]
    written = [
        text,
        urllib.parse.quote(text),
        urllib.parse.quote(text, safe=""),
        urllib.parse.quote_plus(text),
        json.dumps(text),
        text.encode().hex(),
        *encoded,
    ]
    for form in written:
        assert find(f"before {form} behind".encode(), SECRETS) == [secret], form
    assert find(b"nothing", SECRETS) == []
    assert all(len(form) > 12 for form in forms(text))


def test_files_are_searched_across_pieces_and_by_name_and_homes_are_left_out(tmp_path: Path) -> None:
    secret = SECRETS["store key"]
    (tmp_path / "large").write_text("x" * ((1 << 22) - 10) + secret, encoding="utf-8")
    (tmp_path / secret).write_text("", encoding="utf-8")
    (tmp_path / "token").write_text(secret, encoding="utf-8")
    findings, count = scan_folder(tmp_path, SECRETS)
    assert sorted(findings) == sorted([f"{tmp_path / 'large'}: store key", f"{tmp_path / secret}: store key"])
    assert count == 2


@pytest.mark.usefixtures("planted")
def test_a_gateway_and_its_endpoint_leave_no_secret_anywhere(tmp_path: Path) -> None:
    run = Run(tmp_path)
    try:
        run.main_paths()
        run.error_paths()
        run.losses(GateFile(tmp_path))
        until(lambda: len(run.receiver.received) >= 4, FAR)
        file, hidden = run.gateway.data_dir / "gateway.sqlite", run.gateway.data_dir / "hidden.sqlite"
        file.rename(hidden)
        assert run.gateway.post("/v1/workflows", {"graph": "double", "inputs": {"x": 1}}).status_code == 503
        hidden.rename(file)
    finally:
        run.close()
    run.check()


@pytest.fixture
def database(postgres: str) -> Iterator[tuple[str, Cutter]]:
    """Return the URL of the database with a password in it, behind a proxy."""
    parts = urllib.parse.urlsplit(postgres)
    proxy = Cutter(int(parts.port or 0))
    password = urllib.parse.quote(SECRETS["database password"], safe="")
    try:
        yield f"postgresql://{parts.username}:{password}@{proxy.url.removeprefix('http://')}{parts.path}", proxy
    finally:
        proxy.close()


@pytest.mark.usefixtures("planted")
def test_a_gateway_with_the_password_of_a_database_leaves_it_nowhere(tmp_path: Path, database: tuple[str, Cutter], postgres: str) -> None:
    import psycopg

    url, proxy = database
    run = Run(tmp_path, database=url)
    try:
        run.main_paths()
        run.error_paths()
        proxy.sever()
        until(lambda: run.gateway.post("/v1/workflows", {"graph": "double", "inputs": {"x": 1}}).status_code in (202, 503), FAR)
        with psycopg.connect(postgres) as connection:
            tables = [
                row[0]
                for row in connection.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'").fetchall()
            ]
            rows = [str(row) for table in tables for row in connection.execute(f'SELECT * FROM "{table}"').fetchall()]
        assert len(rows) > 20
        run.heard += [row.encode() for row in rows]
    finally:
        run.close()
    run.check()


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    "url", ["postgresql://jobs:{}@127.0.0.1:9/jobs", "postgresql://jobs:{}@localhost:no/jobs", "mysql://jobs:{}@127.0.0.1/jobs"]
)
def test_a_database_that_cannot_be_opened_is_reported_without_its_password(tmp_path: Path, url: str) -> None:
    given = url.format(urllib.parse.quote(SECRETS["database password"], safe=""))
    done = subprocess.run(
        [sys.executable, "-m", "yggdrasill", "gateway", "--port", "0", "--data-dir", str(tmp_path / "gateway")],
        capture_output=True,
        check=False,
        env={**_environment(tmp_path), "YGGDRASILL_DATABASE": given, "YGGDRASILL_TOKEN": SECRETS["gateway token"]},
    )
    assert done.returncode != 0
    assert done.stderr
    assert not find(done.stdout + done.stderr, SECRETS), done.stderr.decode()
    assert not scan_folder(tmp_path, SECRETS)[0]


def _environment(folder: Path, **more: str) -> dict[str, str]:
    return {**environment_of(folder), **ENVIRONMENT, **more}


DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
JOBS: list[dict[str, Any]] = [
    {"type": "health"},
    {"type": "list_models"},
    {"type": "list_files"},
    {"type": "processes"},
    {"type": "upload_training_data", "dataset": "cats", "files": [{"name": "a.png", "data": DOT}]},
    {"type": "upload_training_data", "dataset": "dogs", "urls": ["http://127.0.0.1:9/a.png?key=nothing"]},
    {"prompt": "a lighthouse", "version_id": "none"},
    {"workflow": {"1": {"class_type": "EmptyImage", "inputs": {}}}},
    {"type": "download", "path": "training_data/cats", "output_mode": "s3"},
    {"type": "download", "path": "training_data/cats", "output_mode": "gcs"},
    {"type": "download_file", "path": "../state"},
    {"type": "train_with_yaml", "yaml": "job: extension\nconfig:\n  name: ${HF_TOKEN}\n"},
    {"type": "nonsense"},
]


def _training(folder: Path) -> str:
    """Return a configuration whose trainer prints the only secret that it gets, and fails."""
    train = {"steps": 3, "lr": 0.1, "print_env": "HF_TOKEN", "exit_code": 3}
    process = {
        "type": "sd_trainer",
        "training_folder": str(folder / "workspace" / "output"),
        "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
        "save": {"save_every": 1},
        "datasets": [{"folder_path": str(folder / "workspace" / "training_data" / "cats")}],
        "train": train,
        "model": {"name_or_path": "tiny/model"},
    }
    return json.dumps({"job": "extension", "config": {"name": "leaky", "process": [process]}})


def test_a_worker_leaves_no_secret_anywhere(tmp_path: Path) -> None:
    credentials = tmp_path / "gcs-credentials.json"
    key = {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "id",
        "private_key": SECRETS["google key"],
        "client_email": "a@p.example",
    }
    credentials.write_text(json.dumps(key), encoding="utf-8")
    environment = _environment(
        tmp_path,
        GOOGLE_APPLICATION_CREDENTIALS=str(credentials),
        GCS_BUCKET="results",
        GCS_RETRIES="0",
        BUCKET_ENDPOINT_URL="http://127.0.0.1:9",
        BUCKET_NAME="results",
        AI_TOOLKIT_HOME=str(toolkit(tmp_path / "toolkit")),
        AI_TOOLKIT_PYTHON=sys.executable,
        TRAIN_MODELS="tiny/*",
        YGGDRASILL_ALLOW_PRIVATE_URLS="1",
    )
    jobs = [*JOBS, {"type": "train_with_yaml", "yaml": _training(tmp_path), "wait": True}, {"type": "processes"}]
    sent = json.dumps([{"id": f"job-{number}", "input": job} for number, job in enumerate(jobs)])
    done = subprocess.run([sys.executable, "-c", JOBS_PROGRAM], input=sent.encode(), capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert not find(done.stdout + done.stderr, SECRETS), (done.stdout, done.stderr)
    codes = [json.loads(line).get("code") for line in done.stdout.splitlines()]
    assert codes[:5] == [None] * 5
    assert codes[-3:] == ["unknown_type", "trainer_failed", None]
    findings, count = scan_folder(tmp_path, SECRETS)
    assert not findings
    assert count > 5
