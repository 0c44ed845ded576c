"""The images, the compose files and the script that builds them: linted, compared with the program, and run outside containers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from samples.endpoints import free_port
from samples.git_repositories import GitRepository
from samples.http_client import until
from samples.images import COMPOSE, DOCKER, ENTRYPOINT, ROOT, RoleProcess, compose, dockerfile, ignored, path_with_program
from yggdrasill.cli.parser import build_parser

pytestmark = pytest.mark.skipif(os.name != "posix", reason="images are for Linux")

TOKENS = {"GATEWAY_TOKEN": "gateway-token-of-the-images", "ENDPOINT_TOKEN": "endpoint-token-of-the-images"}
SEVERAL = {"YGGDRASILL_DATABASE": "postgresql://gateway:pw@database/jobs", "DATABASE_PASSWORD": "pw"}
SCRIPTS = [ENTRYPOINT, ROOT / "scripts" / "build_docker.sh"]
BUILD = SCRIPTS[1]
FAR = 90.0

#: A program with ComfyUI's address that reports its arguments.
FAKE_COMFYUI = """
import http.server, json, os, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
body = json.dumps({"argv": sys.argv[1:], "models": os.environ.get("MODELS_DIR")}).encode()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def linter(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"NO {name.upper()} FOUND, SO THE IMAGES ARE NOT LINTED: pip install -e '.[dev]'")
    return found


def services(variables: dict[str, str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = compose(TOKENS if variables is None else variables)["services"]
    return found


def of_our_image() -> dict[str, Any]:
    return {name: service for name, service in services().items() if "build" in service}


# -- the files ----------------------------------------------------------------------------------------------------------------


def test_the_dockerfile_is_linted() -> None:
    done = subprocess.run([linter("hadolint"), str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_scripts_are_linted() -> None:
    done = subprocess.run([linter("shellcheck"), *map(str, SCRIPTS)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert all(os.access(script, os.X_OK) for script in SCRIPTS)


def test_every_stage_exists_and_both_targets_share_the_runtime() -> None:
    stages: dict[str, str] = {}
    for each in dockerfile():
        if each.name == "FROM":
            base = each.text.split()[0]
            assert base in stages or base.startswith("python:"), base
            stages[each.stage] = base
        if "from" in each.flags and each.name == "COPY":
            assert each.flags["from"] in stages
    assert (stages["cpu"], stages["gpu"]) == ("runtime", "runtime")


def test_everything_that_is_copied_exists_and_reaches_the_builder() -> None:
    copied = [each for each in dockerfile() if each.name == "COPY" and "from" not in each.flags]
    assert copied
    for each in copied:
        for source in each.words[:-1]:
            assert (ROOT / source).exists(), source
            assert source == "." or not ignored(source), source


def test_the_build_context_has_the_whole_package_and_no_secrets_or_tests() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    outside = ("tests/", "docs/", "benchmarks/", ".", "docker/endpoints.yaml")
    lost = [path for path in tracked if ignored(path) and not path.startswith(outside)]
    assert not lost
    for path in (
        ".git/config",
        ".env",
        ".venv/bin/python",
        "sub/.env.local",
        "token",
        "data/token",
        "secrets.yaml",
        "a/gateway.sqlite-wal",
        "tests/x.py",
    ):
        assert ignored(path), path


def test_an_image_has_no_secrets_is_not_run_by_root_and_has_a_health_check() -> None:
    instructions = dockerfile()
    assert not [each for each in instructions if each.name == "ADD"]
    names = [word.split("=")[0] for each in instructions if each.name in ("ENV", "ARG") for word in each.text.split()]
    assert not [name for name in names if re.search("TOKEN|SECRET|PASSWORD|KEY|CREDENTIAL", name)]
    final = [each for each in instructions if each.stage in ("runtime", "cpu", "gpu")]
    user = [each.text for each in final if each.name == "USER"][-1]
    assert user.split(":")[0].isdigit()
    assert int(user.split(":")[0]) > 0
    (check,) = [each.text for each in final if each.name == "HEALTHCHECK"]
    (entry,) = [each.text for each in final if each.name == "ENTRYPOINT"]
    assert json.loads(check[check.index("[") :]) == [*json.loads(entry)[2:], "healthcheck"]
    targets = {
        f"/opt/yggdrasill/{Path(each.words[0]).name}" for each in final if each.name == "COPY" and each.words[0].startswith("docker/")
    }
    assert json.loads(entry)[2] in targets


def test_the_ports_are_those_of_the_roles() -> None:
    (exposed,) = [each.text.split() for each in dockerfile() if each.name == "EXPOSE"]
    script = ENTRYPOINT.read_text(encoding="utf-8")
    assert sorted(exposed) == sorted(re.findall(r'port="\$\{PORT:-(\d+)\}"', script))
    parser = build_parser()
    assert {parser.parse_args(["gateway"]).port, parser.parse_args(["serve"]).port, 8188} == set(map(int, exposed))


def test_the_extras_that_are_installed_exist() -> None:
    (toml,) = [(ROOT / "pyproject.toml").read_text(encoding="utf-8")]
    found = {
        extra
        for each in dockerfile()
        if each.name == "RUN"
        for group in re.findall(r"yggdrasill\[([\w,]+)\]", each.text)
        for extra in group.split(",")
    }
    assert {"gateway", "runpod", "stores"} <= found
    for extra in found:
        assert re.search(rf"^{extra} = \[", toml, re.MULTILINE), extra


@pytest.mark.parametrize("reference", ["tag", "commit", "branch"])
def test_comfyui_is_fetched_at_a_version(tmp_path: Path, reference: str) -> None:
    upstream = GitRepository(tmp_path / "upstream")
    wanted = upstream.commit("main.py", "print('wanted')\n")
    upstream.git("tag", "v1.2.3")
    upstream.git("branch", "stable")
    upstream.commit("main.py", "print('newer')\n")
    version = {"tag": "v1.2.3", "commit": wanted, "branch": "stable"}[reference]
    (command,) = [each.text for each in dockerfile() if each.stage == "comfyui" and "git init" in each.text]
    target = tmp_path / "ComfyUI"
    environment = {**os.environ, "COMFYUI_REPOSITORY": upstream.url, "COMFYUI_VERSION": version}
    done = subprocess.run(
        ["sh", "-c", command.replace("/opt/ComfyUI", str(target))], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (target / "main.py").read_text(encoding="utf-8") == "print('wanted')\n"


def test_every_command_of_the_dockerfile_is_valid_shell() -> None:
    commands = [each.text for each in dockerfile() if each.name == "RUN"]
    assert len(commands) >= 6
    for command in commands:
        assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0, command


def test_the_environment_is_made_and_used_as_in_the_image(tmp_path: Path) -> None:
    (command,) = [each.text for each in dockerfile() if each.name == "RUN" and "-m venv" in each.text]
    made = tmp_path / "venv"
    done = subprocess.run(
        ["sh", "-c", command.replace("/opt/venv", str(made)).replace("python ", f"{sys.executable} ", 1) + " --without-pip"], check=False
    )
    assert done.returncode == 0
    assert (made / "bin" / "python").exists()


# -- the roles ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def role(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Return a function that starts the entry point with a command; what it started is stopped after the test."""

    def start(*command: str, **environment: str) -> RoleProcess:
        process = RoleProcess(tmp_path / command[0], list(command), {"PORT": str(free_port()), **environment})
        request.addfinalizer(process.stop)
        return process

    return start


@pytest.mark.parametrize("name", ["gateway", "endpoint"])
def test_a_role_serves_and_its_health_check_notices_its_end(role: Any, name: str) -> None:
    if name == "gateway":
        pytest.importorskip("sqlalchemy", reason="the extra 'gateway' is not installed")
    process = role(name, YGGDRASILL_TOKEN="a-token-of-twenty-characters")
    until(process.healthy, FAR)
    assert process.stop() == 0
    checked = subprocess.run([str(ENTRYPOINT), "healthcheck"], env=process.environment, capture_output=True, check=False)
    assert checked.returncode == 1


def test_comfyui_gets_its_folders_and_the_words_of_the_settings(role: Any, tmp_path: Path) -> None:
    home = tmp_path / "ComfyUI"
    home.mkdir()
    (home / "main.py").write_text(FAKE_COMFYUI, encoding="utf-8")
    process = role("comfyui", "--verbose", COMFY_HOME=str(home), COMFY_ARGS="--cpu --cache-lru 3", MODELS_DIR="/shared models")
    until(process.healthy, FAR)
    found = requests.get(process.url, timeout=30).json()
    words = found["argv"]
    assert words[-4:] == ["--cpu", "--cache-lru", "3", "--verbose"]
    assert found["models"] == "/shared models"
    for flag in ("--input-directory", "--output-directory", "--temp-directory", "--user-directory"):
        assert Path(words[words.index(flag) + 1]).is_dir()
    assert Path(words[words.index("--extra-model-paths-config") + 1]).is_file()


def test_a_worker_runs_a_job_and_is_healthy(role: Any) -> None:
    process = role("worker", "cli", "--input", '{"type": "health"}', WORKSPACE_ROOT="workspace", COMFY_HOME="missing")
    code = process.process.wait(FAR)
    printed = process.log.read_text(encoding="utf-8")
    assert code == 0, printed
    assert '"versions"' in printed
    checked = subprocess.run([str(ENTRYPOINT), "healthcheck"], env=process.environment, capture_output=True, check=False)
    assert checked.returncode == 0


def test_a_worker_without_arguments_is_a_serverless_one(tmp_path: Path) -> None:
    shim = tmp_path / "bin"
    path = path_with_program(shim)
    (shim / "yggdrasill").write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    environment = {"PATH": path, "YGGDRASILL_DATA": str(tmp_path)}
    done = subprocess.run([str(ENTRYPOINT), "worker"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "worker serverless\n"


def test_another_word_is_a_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ENTRYPOINT), "echo", "two words", "*"], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "two words *\n"


# -- the compose files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TOKENS))
def test_a_missing_token_is_named(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        services({key: value for key, value in TOKENS.items() if key != name})


def test_every_service_is_built_by_a_target_or_pinned_and_knows_its_volumes() -> None:
    document = compose({**TOKENS, **SEVERAL})
    stages = {each.stage for each in dockerfile()}
    used = set()
    for name, service in document["services"].items():
        if "build" in service:
            assert service["build"]["target"] in stages, name
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        else:
            assert ":" in service["image"], name
        for volume in service.get("volumes", []):
            source, _, rest = volume.partition(":")
            if source.startswith("./"):
                assert (ROOT / source).is_file(), source
                assert rest.endswith(":ro")
            else:
                used.add(source)
        for other in service.get("depends_on", {}):
            assert other in document["services"]
    assert used == set(document["volumes"])


def test_ports_and_addresses_agree() -> None:
    found = services()
    endpoints = compose(TOKENS, DOCKER / "endpoints.yaml")["endpoints"]
    assert set(endpoints) == {name for name, service in found.items() if service.get("command") == ["comfyui"]}
    for name, endpoint in endpoints.items():
        assert endpoint["url"] == f"http://{name}:{found[name]['environment']['PORT']}"
        assert endpoint["token_env"] in found["gateway"]["environment"]
    for service in found.values():
        for port in service.get("ports", []):
            assert port.rpartition(":")[2] == service["environment"]["PORT"]
            assert port.startswith("127.0.0.1:"), "only this machine by default"
    assert len({port for service in found.values() for port in service.get("ports", [])}) == 2


def test_every_variable_of_a_service_is_read_by_the_program() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.py", "docker/*"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    program = "\n".join((ROOT / path).read_text(encoding="utf-8") for path in tracked if not path.startswith("tests/"))
    variables = {name for service in of_our_image().values() for name in service["environment"]}
    variables |= {
        word.split("=")[0]
        for each in dockerfile()
        if each.name == "ENV"
        for word in each.text.split()
        if word.startswith(("COMFY", "MODELS", "YGG"))
    }
    for name in variables:
        assert re.search(rf"\b{name}\b", program.replace((DOCKER / "Dockerfile").read_text(encoding="utf-8"), "")), name


def test_no_secret_has_a_value_in_the_compose_file() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    for line in text.splitlines():
        name, colon, value = line.strip().partition(": ")
        if colon and re.search("TOKEN|SECRET|PASSWORD", name) and not name.startswith("#"):
            assert value.strip('"').startswith("${"), line


def test_the_commands_are_accepted_by_the_program() -> None:
    parser = build_parser()
    for name, service in of_our_image().items():
        role, *words = service["command"]
        assert re.search(rf"^{role}\)$", ENTRYPOINT.read_text(encoding="utf-8"), re.MULTILINE), name
        if role == "gateway":
            parsed = parser.parse_args([role, *words])
            assert parsed.endpoints in {volume.split(":")[1] for volume in service["volumes"]}


def test_the_gateway_of_the_compose_file_serves_its_page(role: Any) -> None:
    pytest.importorskip("sqlalchemy", reason="the extra 'gateway' is not installed")
    service = services()["gateway"]
    command = [str(DOCKER / "endpoints.yaml") if word.startswith("/etc/") else word for word in service["command"]]
    process = role(*command, **{name: value for name, value in service["environment"].items() if name != "PORT"})
    until(process.healthy, FAR)
    assert "<title>Gateway</title>" in requests.get(process.url, timeout=30).text
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {TOKENS['GATEWAY_TOKEN']}"
    answer = session.get(process.url + "/v1/endpoints", timeout=60).json()
    assert {(each["name"], each["up"]) for each in answer["endpoints"]} == {("comfy-a", False), ("comfy-b", False)}
    assert [each["name"] for each in answer["pools"]] == ["images"]
    printed = process.log.read_text(encoding="utf-8")
    assert not [value for value in TOKENS.values() if value in printed]


def test_the_database_is_checked_by_a_command_that_exists() -> None:
    test = services()["database"]["healthcheck"]["test"]
    programs = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/pg_isready")]
    found = shutil.which(test[1], path=os.pathsep.join([os.environ["PATH"], *map(str, programs)]))
    if found is None:
        pytest.skip("PostgreSQL is not installed")
    command = [found, *test[2:], "--host", "127.0.0.1", "--port", str(free_port())]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2  # no response, and no invalid parameter


def test_the_services_with_a_gpu_are_those_of_the_compose_file() -> None:
    found = compose({}, ROOT / "docker-compose.gpu.yml")["services"]
    assert set(found) == {name for name, service in services().items() if service.get("command") == ["comfyui"]}


# -- the script -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path: Path) -> Any:
    """Return a function that runs the script with a program that records its arguments, and returns them for each call."""
    recorder = tmp_path / "docker"
    recorder.write_text(
        f'#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done >>{tmp_path}/calls\necho >>{tmp_path}/calls\n', encoding="utf-8"
    )
    recorder.chmod(0o755)

    def run(*targets: str, **settings: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
        environment = {"PATH": os.environ["PATH"], "DOCKER": str(recorder), **settings}
        done = subprocess.run([str(BUILD), *targets], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        calls = tmp_path / "calls"
        text = calls.read_text(encoding="utf-8") if calls.exists() else ""
        return done, [call.splitlines() for call in text.split("\n\n") if call]

    return run


def test_both_targets_are_built_by_default(built: Any) -> None:
    import yggdrasill

    done, calls = built()
    assert done.returncode == 0, done.stderr
    assert [call[call.index("--target") + 1] for call in calls] == ["cpu", "gpu"]
    for call in calls:
        assert call[0] == "build"
        assert call[-1] == str(ROOT)
        assert Path(call[call.index("--file") + 1]).is_file()
        assert f"yggdrasill:{yggdrasill.__version__}-{call[call.index('--target') + 1]}" in call


def test_versions_are_arguments_of_the_build(built: Any) -> None:
    done, (call,) = built("cpu", COMFYUI_VERSION="v0.33.0", IMAGE="registry.lan/ygg")
    assert done.returncode == 0, done.stderr
    assert "COMFYUI_VERSION=v0.33.0" in call
    assert "registry.lan/ygg:cpu" in call
    arguments = {each.text.split("=")[0] for each in dockerfile() if each.name == "ARG"}
    assert {word.split("=")[0] for word in call if re.match("[A-Z_]+=", word)} <= arguments


def test_an_unknown_target_is_refused_before_anything_is_built(built: Any) -> None:
    done, calls = built("cpu", "tpu")
    assert (done.returncode, calls) == (2, [])
    assert "Unknown target 'tpu'. Available: 'cpu', 'gpu'." in done.stderr
