"""Results in Google Cloud Storage (an emulator) and in an S3 store (moto), by the real client libraries."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from samples.endpoints import free_port
from samples.serverless import environment_of, ok, run_jobs, serverless_python, started, waited
from yggdrasill.errors import InvalidArgument, StorageFailed
from yggdrasill.worker.buckets import GcsBucket, S3Bucket
from yggdrasill.worker.settings import GcsSettings, S3Settings

pytestmark = pytest.mark.timeout(400)  # processes that import hundreds of modules

SECRET = "planted-secret-of-the-store"
DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def python() -> Path:
    return serverless_python()


@pytest.fixture(scope="module")
def gcs(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an emulator with the bucket ``results``."""
    log, port = tmp_path_factory.mktemp("gcs") / "log", free_port()
    command = [
        str(python.with_name("gcp-storage-emulator")),
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--in-memory",
        "--default-bucket",
        "results",
    ]
    with started(command, environment_of(log.parent), log):
        url = f"http://127.0.0.1:{port}"
        waited(lambda: ok(f"{url}/storage/v1/b/results"), log)
        yield url


@pytest.fixture(scope="module")
def s3(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of moto's server with the bucket ``results``."""
    log, port = tmp_path_factory.mktemp("s3") / "log", free_port()
    with started([str(python.with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)], environment_of(log.parent), log):
        url = f"http://127.0.0.1:{port}"
        waited(lambda: ok(url), log)
        urllib.request.urlopen(urllib.request.Request(f"{url}/results", method="PUT")).close()
        yield url


def jobs(*inputs: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"id": f"job-{number}", "input": {"type": "download", "path": "output/a.bin", **given}} for number, given in enumerate(inputs)]


def folder_with_output(tmp_path: Path) -> Path:
    (tmp_path / "workspace" / "output").mkdir(parents=True)
    (tmp_path / "workspace" / "output" / "a.bin").write_bytes(DATA)
    return tmp_path


def test_files_are_put_into_google_cloud_storage(python: Path, gcs: str, tmp_path: Path) -> None:
    environment = environment_of(
        folder_with_output(tmp_path),
        STORAGE_EMULATOR_HOST=gcs,
        GCS_BUCKET="results",
        GCS_RETRIES="1",
        GCS_RETRY_BASE_SLEEP="0.01",
        PAYLOAD_LIMIT="5000",
    )
    found = run_jobs(
        python,
        environment,
        jobs(
            {"output_mode": "gcs"},
            {"output_mode": "gcs", "gcs_prefix": "other/place/"},
            {"output_mode": "gcs", "gcs_bucket": "no-such-bucket"},
            {"output_mode": "base64"},
        ),
    )
    default, other, missing, spilled = found
    entry = default["files"][0]
    assert entry["gcs_url"] == "gs://results/comfy/outputs/job-0/output/a.bin", default
    assert entry["size"] == len(DATA)
    assert content(gcs, entry["gcs_url"]) == DATA
    assert other["files"][0]["gcs_url"] == "gs://results/other/place/job-1/output/a.bin"
    assert missing["code"] == "no_bucket"
    assert (spilled["files"][0]["spilled"], content(gcs, spilled["files"][0]["gcs_url"])) == (True, DATA)


MAKE_KEY = """
import json, sys
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
path, token_uri = sys.argv[1:]
key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
facts = {"type": "service_account", "project_id": "tests", "private_key_id": "1", "private_key": pem,
         "client_email": "worker@tests.iam.gserviceaccount.com", "client_id": "1", "token_uri": token_uri}
with open(path, "w") as file:
    json.dump(facts, file)
"""
#: Checks a signature of version 4 as the service does: https://cloud.google.com/storage/docs/authentication/canonical-requests
CHECK_URL = """
import hashlib, json, sys
from urllib.parse import parse_qsl, quote, urlsplit
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
path, url = sys.argv[1:]
parts = urlsplit(url)
query = dict(parse_qsl(parts.query, strict_parsing=True))
signature = bytes.fromhex(query.pop("X-Goog-Signature"))
listed = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
request = f"GET\\n{parts.path}\\n{listed}\\nhost:{parts.netloc}\\n\\nhost\\nUNSIGNED-PAYLOAD"
scope = query["X-Goog-Credential"].partition("/")[2]
text = f"GOOG4-RSA-SHA256\\n{query['X-Goog-Date']}\\n{scope}\\n{hashlib.sha256(request.encode()).hexdigest()}"
key = serialization.load_pem_private_key(json.load(open(path))["private_key"].encode(), None).public_key()
key.verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())
print(json.dumps([query["X-Goog-Expires"], query["X-Goog-Credential"].partition("/")[0]]))
"""


class Tokens(BaseHTTPRequestHandler):
    """The service that exchanges a signed assertion for a token."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"access_token": "planted-token-of-google", "expires_in": 3600, "token_type": "Bearer"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Print nothing."""


def test_an_object_of_google_cloud_storage_has_a_url_signed_by_the_service_account(python: Path, gcs: str, tmp_path: Path) -> None:
    key = tmp_path / "account.json"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Tokens)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        subprocess.run([str(python), "-c", MAKE_KEY, str(key), f"http://127.0.0.1:{server.server_port}/token"], check=True)
        environment = environment_of(
            folder_with_output(tmp_path),
            STORAGE_EMULATOR_HOST=gcs,
            GOOGLE_APPLICATION_CREDENTIALS=str(key),
            GCS_BUCKET="results",
            GCS_SIGNED_URL_TTL="90",
        )
        (result,) = run_jobs(python, environment, jobs({"output_mode": "gcs"}))
    finally:
        server.shutdown()
        server.server_close()
    assert "files" in result, result
    (entry,) = result["files"]
    assert content(gcs, entry["gcs_url"]) == DATA
    assert "planted-token" not in json.dumps(result)
    done = subprocess.run([str(python), "-c", CHECK_URL, str(key), entry["url"]], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == ["90", "worker@tests.iam.gserviceaccount.com"]


def content(emulator: str, url: str) -> bytes:
    bucket, _, name = url.removeprefix("gs://").partition("/")
    with urllib.request.urlopen(f"{emulator}/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}?alt=media") as answer:
        data: bytes = answer.read()
    return data


def test_a_store_that_does_not_answer_fails_after_the_retries_with_a_code(python: Path, tmp_path: Path) -> None:
    environment = environment_of(
        folder_with_output(tmp_path),
        STORAGE_EMULATOR_HOST=f"http://127.0.0.1:{free_port()}",
        GCS_BUCKET="results",
        GCS_RETRIES="2",
        GCS_RETRY_BASE_SLEEP="0.01",
    )
    (result,) = run_jobs(python, environment, jobs({"output_mode": "gcs"}))
    assert result["code"] == "upload_failed", result
    assert (tmp_path / "workspace" / "output" / "a.bin").read_bytes() == DATA


def test_a_bucket_without_credentials_is_an_error_with_a_code(python: Path, tmp_path: Path) -> None:
    environment = environment_of(
        folder_with_output(tmp_path), GCS_BUCKET="results", NO_GCE_CHECK="true", GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "none.json")
    )
    (result,) = run_jobs(python, environment, jobs({"output_mode": "gcs"}))
    assert result["code"] == "no_credentials", result
    assert str(tmp_path) not in json.dumps(result)


def test_files_are_put_into_an_s3_store_with_signed_urls(python: Path, s3: str, tmp_path: Path) -> None:
    environment = environment_of(
        folder_with_output(tmp_path),
        BUCKET_ENDPOINT_URL=s3,
        BUCKET_NAME="results",
        BUCKET_ACCESS_KEY_ID="planted-key-id",
        BUCKET_SECRET_ACCESS_KEY=SECRET,
        PAYLOAD_LIMIT="5000",
    )
    default, other, missing, spilled = run_jobs(
        python,
        environment,
        jobs(
            {"output_mode": "s3"},
            {"output_mode": "s3", "s3_prefix": ""},
            {"output_mode": "s3", "s3_bucket": "no-such-bucket"},
            {"output_mode": "base64"},
        ),
    )
    entry = default["files"][0]
    assert entry["s3_url"] == "s3://results/comfy/outputs/job-0/output/a.bin", default
    with urllib.request.urlopen(entry["url"]) as answer:
        assert (answer.read(), answer.headers["Content-Type"]) == (DATA, "application/octet-stream")
    assert other["files"][0]["s3_url"] == "s3://results/job-1/output/a.bin"
    assert missing["code"] == "upload_failed"
    with urllib.request.urlopen(spilled["files"][0]["url"]) as answer:
        assert answer.read() == DATA
    assert SECRET not in json.dumps([default, other, missing, spilled])


@pytest.mark.parametrize("name", ["gs://results", "a/b", "X", "", "a" * 300])
def test_a_bucket_is_named_without_a_scheme_or_path(name: str) -> None:
    for make in (lambda: GcsBucket(GcsSettings(), name), lambda: S3Bucket(S3Settings(), name)):
        with pytest.raises(InvalidArgument) as caught:
            make()
        assert caught.value.details["code"] == "no_bucket"


def test_a_prefix_does_not_leave_its_place() -> None:
    with pytest.raises(InvalidArgument, match="A prefix"):
        GcsBucket(GcsSettings(), "results", "../x")
    assert GcsBucket(GcsSettings(), "results", "/a/b/").prefix == "a/b/"
    assert GcsBucket(GcsSettings(), "results", "").prefix == ""


@pytest.mark.parametrize(
    "url, bucket, endpoint",
    [
        ("https://results.s3.eu-west-1.amazonaws.com", "results", "https://s3.eu-west-1.amazonaws.com"),
        ("https://host:9000/results/", "results", "https://host:9000"),
        ("http://host:9000", "named", "http://host:9000"),
    ],
)
def test_the_endpoint_url_may_name_the_bucket(url: str, bucket: str, endpoint: str) -> None:
    found = S3Bucket(S3Settings(endpoint_url=url, bucket=None if bucket == "results" else bucket))
    assert (found.name, found._endpoint) == (bucket, endpoint)


async def test_an_s3_bucket_without_keys_is_refused_before_anything_runs() -> None:
    with pytest.raises(StorageFailed) as caught:
        await S3Bucket(S3Settings(bucket="results")).check()
    assert caught.value.details["code"] == "no_credentials"
