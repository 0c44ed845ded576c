"""An endpoint and a gateway that most tests of this folder share, and a database server for those that need one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the extra 'gateway' is not installed")

from samples.endpoints import EndpointProcess, free_port
from samples.gateways import GatewayProcess
from samples.http_client import Http, one_node
from samples.plain_comfy import PlainComfy, plain_comfys

PLUGINS = ["samples.served_blocks"]
GRAPHS = {"double": ("x",), "fail": ("x",), "gate": ("path", "x"), "keeper": ("path", "x"), "say": ("x",)}


def deploy_graphs(endpoint: EndpointProcess) -> None:
    http = Http(endpoint)
    for name, inputs in GRAPHS.items():
        http.deploy(name, one_node(name, inputs))
    http.deploy("noise", one_node("noise", (), ("noise",), shape=[20_000]))


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointProcess]:
    """Return an endpoint with two slots and the sample graphs."""
    process = EndpointProcess("forge", tmp_path_factory.mktemp("forge"), plugins=PLUGINS, slots=2).start()
    try:
        deploy_graphs(process)
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, endpoint: EndpointProcess) -> Iterator[GatewayProcess]:
    """Return a gateway before ``endpoint``, with the pool ``pool``."""
    settings = {"pools": ["pool"], "private_webhooks": True, "webhook_delays": [0.1, 0.1, 0.1], "worker_lease": 2.0}
    process = GatewayProcess(tmp_path_factory.mktemp("gateway"), [endpoint], **settings).start()
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="session")
def comfys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[PlainComfy]]:
    """Return two ComfyUIs; only the first one has the node ``Files``."""
    folder = tmp_path_factory.mktemp("comfys")
    servers = [PlainComfy("easel", folder / "easel"), PlainComfy("lathe", folder / "lathe", lacks=("Files",))]
    with plain_comfys(*servers):
        yield servers


@pytest.fixture(scope="session")
def comfy_gateway(tmp_path_factory: pytest.TempPathFactory, comfys: list[PlainComfy]) -> Iterator[GatewayProcess]:
    """Return a gateway before ``comfys``."""
    process = GatewayProcess(tmp_path_factory.mktemp("comfy-gateway"), comfys, ahead=0, max_queue=6).start()
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """Return the file that a node ``Steps`` waits for. It exists after the test."""
    path = tmp_path / uuid.uuid4().hex
    yield path
    path.touch()


def _postgres() -> Path | None:
    """Return the folder with the programs of PostgreSQL, or None."""
    found = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    given = shutil.which("initdb")
    return found[-1] if found else Path(given).parent if given else None


@pytest.fixture
def postgres(postgres_server: str) -> str:
    """Return the URL of a new, empty database: a queue is bounded as a whole, so jobs that another test left would count."""
    import psycopg

    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # a name cannot be a parameter
    return f"{postgres_server.rpartition('/')[0]}/{name}"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Return the URL of a database server that is started for the tests, as an unprivileged user."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = _postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="yggdrasill-postgres-"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody")
        as_user = ["setpriv", "--reuid=nobody", "--clear-groups", "--inh-caps=-all"]
    port, data = free_port(), folder / "data"

    def run(*command: str) -> None:
        subprocess.run([*as_user, *command], check=True, capture_output=True, cwd=folder)

    run(str(programs / "initdb"), "-D", str(data), "-U", "tests", "--auth=trust", "--no-sync", "-E", "UTF8")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    run(str(programs / "pg_ctl"), "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql://tests@127.0.0.1:{port}/postgres"
    finally:
        run(str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
