"""Parts on serverless workers by ``runpod://``: our gateway in the place of RunPod, our worker under the unmodified SDK."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="the extra 'gateway' is not installed")

import torch

import samples.served_blocks  # noqa: F401 - registers blocks
from samples.endpoints import EndpointProcess
from samples.gateways import GATEWAY_TOKEN, GatewayProcess
from samples.graphs import bits, graph_of
from samples.http_client import until
from samples.serverless import serverless_python
from samples.serverless_pools import FOREIGN, Pool, calling
from samples.worlds import bits as world_bits
from samples.worlds import canonical_world, user_state
from yggdrasill.errors import (
    AccessDenied,
    BlockFailed,
    BudgetSpent,
    Cancelled,
    EndpointFailed,
    InvalidConfig,
    PayloadTooLarge,
    ProtocolMismatch,
    TimedOut,
    UnknownBlockType,
    UnknownEndpoint,
    UnknownGraph,
)
from yggdrasill.executor.context import CancelToken, enter_run
from yggdrasill.foundation import BlockRegistry, Graph
from yggdrasill.remote import EndpointRegistry, RemoteGraph
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.serverless.messages import RUN_BYTES, RUNSYNC_BYTES
from yggdrasill.remote.serverless.queue_channel import QueueChannel

pytestmark = pytest.mark.timeout(600)  # workers import hundreds of modules
FAR = 240.0
INLINE = 7_000_000
"""Bytes of a tensor that fits into a request of /run as base64."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that gives up a job when its worker is lost, as RunPod may."""
    serverless_python()
    pools = ["cloud", "stored", "empty", "foreign", "newer", "late", "lost", "spent", "failing"]
    process = GatewayProcess(tmp_path_factory.mktemp("gateway"), pools=pools, worker_lease=3.0, max_attempts=1).start()
    try:
        with calling(process):
            yield process
    finally:
        process.stop()


@pytest.fixture(scope="module")
def cloud(gateway: GatewayProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool with one worker, without an artifact store."""
    folder = tmp_path_factory.mktemp("cloud")
    graphs = folder / "graphs"
    graphs.mkdir()
    (graphs / "thrice.json").write_text(json.dumps(total().to_config()), encoding="utf-8")
    pool = Pool(gateway, "cloud", folder, GRAPHS_DIR=str(graphs))
    try:
        pool.work("anvil")
        yield pool
    finally:
        pool.close()


@pytest.fixture
def make_pool(gateway: GatewayProcess, tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    """Make pools whose workers are stopped after the test."""
    made: list[Pool] = []

    def make(name: str, **variables: str) -> Pool:
        made.append(Pool(gateway, name, tmp_path / name, **variables))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def placed(graph: Graph, pool: Pool, **facts: Any) -> Any:
    return graph.place(pool.registry(**facts))


def noisy() -> Graph:
    return graph_of(
        {"n": ("noise", {"shape": [40, 200]}), "s": "scale"},
        ["n.noise -> s.x"],
        ["s.factor = factor"],
        ["s.y = out", "n.noise = noise"],
        graph_id="noisy",
    )


def served(block: str, inputs: tuple[str, ...], graph_id: str, **config: Any) -> Graph:
    """Return a graph of one block of `samples.served_blocks`."""
    graph = Graph(graph_id, registry=BlockRegistry.global_registry())
    graph.add_node("n", f"sample/{block}", config=config, auto_connect=False)
    for name in inputs:
        graph.expose_input("n", name, name)
    graph.expose_output("n", "y", "y")
    return graph


def total() -> Graph:
    return served("total", ("x",), "total")


def spread() -> Graph:
    return served("spread", ("x", "count"), "spread")


def gate(name: str = "gate") -> Graph:
    return served(name, ("path", "x"), name)


@contextmanager
def in_background(act: Callable[[], Any]) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(act)


def count_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


# -- results ----------------------------------------------------------------------------------------------------------------


def test_a_graph_runs_on_a_worker_that_the_gateway_feeds_bit_for_bit(cloud: Pool) -> None:
    local, remote = noisy(), placed(noisy(), cloud)
    for factor in (2.0, torch.randn(40, 200).t().contiguous().t(), torch.tensor([float("nan")])):
        assert bits(remote.run({"factor": factor}, seed=5)) == bits(local.run({"factor": factor}, seed=5))
    assert bits(remote.run({}, seed=6)) != bits(local.run({}, seed=5))


def test_a_graph_of_the_workers_is_called_by_its_id_and_url(cloud: Pool) -> None:
    remote = RemoteGraph(cloud.url, "thrice")
    assert [entry["name"] for entry in remote.get_input_spec()] == ["x"]
    assert remote.run({"x": torch.arange(5.0)}) == {"y": 10.0}
    with pytest.raises(UnknownGraph, match="'nowhere'"):
        RemoteGraph(cloud.url, "nowhere").prepare()


def test_a_gateway_has_serverless_endpoints_too(cloud: Pool, tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_text(json.dumps({"endpoints": {"cloud": {"url": cloud.url}}}), encoding="utf-8")
    environment = {name: os.environ[name] for name in ("RUNPOD_ENDPOINT_BASE_URL", "RUNPOD_API_KEY")}
    front = GatewayProcess(tmp_path / "front", environment=environment)
    front.settings["endpoints"] = str(file)
    front.start()
    try:
        until(lambda: "thrice" in json.dumps(front.get("/v1/endpoints").json()), FAR)
        job_id = front.submit("thrice", {"x": 4.0})["job_id"]
        until(lambda: front.status(job_id) in ("COMPLETED", "FAILED"), FAR)
        found = front.result(job_id)
        # the graph wants a tensor: the failure of the run is that of the worker
        assert (found["status"], "float" in json.dumps(found["error"])) == ("FAILED", True), found
        before = sum(cloud.jobs().values())
        for _ in range(5):
            front.get("/v1/endpoints")
        assert sum(cloud.jobs().values()) == before
    finally:
        front.stop()


def test_an_equal_part_is_deployed_once(cloud: Pool) -> None:
    placed(total(), cloud).run({"x": torch.ones(3)})
    before = cloud.jobs()["completed"]
    again = placed(total(), cloud)
    assert again.run({"x": torch.ones(4)}) == {"y": 4.0}
    assert cloud.jobs()["completed"] == before + 1


@pytest.mark.parametrize("nbytes", [1000, 100_000, INLINE], ids=["small", "artifact", "just below the limit"])
def test_tensors_below_the_limit_go_and_come_inside_messages(cloud: Pool, nbytes: int) -> None:
    values = torch.arange(nbytes, dtype=torch.int64).remainder(251).to(torch.uint8)
    assert placed(total(), cloud).run({"x": values}) == total().run({"x": values})
    count = min(nbytes, 6_900_000)
    assert bits(placed(spread(), cloud).run({"x": 3, "count": count})) == bits(spread().run({"x": 3, "count": count}))


def test_a_larger_request_goes_by_runsync_and_the_largest_is_refused_before_it_is_queued(cloud: Pool) -> None:
    remote = placed(total(), cloud)
    assert remote.run({"x": torch.ones(12_000_000, dtype=torch.uint8)}) == {"y": 12_000_000.0}
    before = sum(cloud.jobs().values())
    with pytest.raises(PayloadTooLarge, match=r"no artifact store.*Set 'store'") as caught:
        remote.run({"x": torch.ones(RUNSYNC_BYTES, dtype=torch.uint8)})
    assert caught.value.details["bound"] == RUNSYNC_BYTES
    assert sum(cloud.jobs().values()) == before


def test_a_result_that_is_too_large_without_a_store_is_an_error_that_says_what_to_do(cloud: Pool) -> None:
    with pytest.raises(PayloadTooLarge, match="YGGDRASILL_ARTIFACT_STORE") as caught:
        placed(spread(), cloud).run({"x": 1, "count": RUN_BYTES})
    assert str(cloud.folder) not in str(caught.value)


def test_larger_tensors_go_and_come_by_the_artifact_store(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    store = tmp_path / "store"
    pool = make_pool("stored", YGGDRASILL_ARTIFACT_STORE=str(store))
    pool.work("vault")
    large = torch.randint(0, 256, (30_000_000,), dtype=torch.uint8)
    remote = placed(total(), pool, store=str(store))
    assert remote.run({"x": large}) == total().run({"x": large})
    stored = {path.name for path in (store / "objects").rglob("*") if path.is_file()}
    assert any(path.stat().st_size == large.nbytes for path in (store / "objects").rglob("*") if path.is_file())
    assert bits(placed(spread(), pool, store=str(store)).run({"x": 5, "count": 21_000_000})) == bits(
        spread().run({"x": 5, "count": 21_000_000})
    )
    # what is lost from the store is sent again, what was there is not
    for path in (store / "objects").rglob("*"):
        if path.is_file() and path.stat().st_size == large.nbytes:
            path.unlink()
    assert remote.run({"x": large}) == total().run({"x": large})
    assert stored <= {path.name for path in (store / "objects").rglob("*") if path.is_file()}
    with pytest.raises(PayloadTooLarge, match="not the caller's"):
        placed(spread(), pool).run({"x": 5, "count": 21_000_000})
    with pytest.raises(InvalidConfig, match="is not the caller's"):
        placed(total(), pool, store=str(tmp_path / "another")).run({"x": large})


def test_a_value_goes_from_a_worker_to_an_endpoint(cloud: Pool, tmp_path: Path) -> None:
    from yggdrasill.pipeline import Pipeline

    def chain() -> Pipeline:
        pipeline = Pipeline("chain")
        pipeline.add_graph(spread())
        pipeline.add_graph(total())
        pipeline.add_edge("spread", "y", "total", "x")
        for port in ("x", "count"):
            pipeline.expose_input("spread", port, port)
        pipeline.expose_output("total", "y", "sum")
        return pipeline

    forge = EndpointProcess("forge", tmp_path / "forge", plugins=["samples.plugin", "samples.served_blocks"]).start()
    try:
        registry = EndpointRegistry(
            {"cloud": {"url": cloud.url}, "forge": {"url": forge.url, "token_env": "FORGE_TOKEN"}}, {"spread": "cloud", "total": "forge"}
        )
        os.environ["FORGE_TOKEN"] = forge.token
        inputs = {"x": 2, "count": 300_000}
        assert chain().place(registry).run(inputs) == chain().run(inputs)
    finally:
        os.environ.pop("FORGE_TOKEN", None)
        forge.stop()


def test_a_world_whose_stages_run_on_workers_equals_the_local_one(cloud: Pool) -> None:
    local, world = canonical_world(), canonical_world()
    stages = list(world.stages)
    remote = world.place(cloud.registry(dict.fromkeys(stages, "cloud"), default="local"))
    state = user_state(1, 2, 3)
    assert world_bits(remote.run(state, num_steps=2)) == world_bits(local.run(state, num_steps=2))


def test_what_keeps_state_is_refused_before_it_runs(cloud: Pool) -> None:
    with pytest.raises(InvalidConfig, match=r"keeps state between calls.*serverless"):
        placed(gate("keeper"), cloud).prepare()
    with pytest.raises(InvalidConfig, match=r"keeps state between calls"):
        canonical_world(world_id="whole").place(cloud.registry({"whole": "cloud"}, default="local"))


# -- runs -------------------------------------------------------------------------------------------------------------------


def test_errors_of_the_run_are_those_of_a_local_run(cloud: Pool) -> None:
    graph = graph_of({"f": ("fail", {"message": "the oven is cold"})}, [], ["f.x = x"], ["f.y = y"], graph_id="oven")
    with pytest.raises(BlockFailed) as remote:
        placed(graph, cloud).run({"x": 1})
    with pytest.raises(BlockFailed) as local:
        graph.run({"x": 1})
    assert remote.value.message == local.value.message
    assert remote.value.details["node"] == local.value.details["node"]
    with pytest.raises(UnknownBlockType, match="sample/of-another-plugin"):
        loop_thread().run(
            cloud.registry()
            .client("cloud")
            .deploy(
                "odd",
                {
                    "kind": "graph",
                    "config": {"graph_id": "odd", "nodes": [{"node_id": "n", "block_type": "sample/of-another-plugin"}], "edges": []},
                },
            )
        )


def test_progress_of_the_nodes_inside_reaches_the_run(cloud: Pool) -> None:
    graph = graph_of({"s": ("slow", {"seconds": 4.0})}, [], ["s.x = x"], ["s.y = y"], graph_id="slow")
    seen: list[tuple[str, float, float]] = []
    remote = placed(graph, cloud)
    with enter_run(path=("pipe",), progress=lambda place, done, total, text: seen.append((place, done, total))) as context:
        context.node = "slow"
        assert remote.run({"x": 1}) == {"y": 1}
    inner = [done for place, done, total in seen if place == "pipe/slow/s"]
    assert inner
    assert inner == sorted(inner)


def test_a_cancel_reaches_the_running_node(cloud: Pool, tmp_path: Path) -> None:
    remote, token, mark = placed(gate("watched"), cloud), CancelToken(), tmp_path / "mark"

    def run() -> None:
        with enter_run(token=token):
            remote.run({"path": str(mark), "x": 1})

    with in_background(run) as running:
        until(lambda: count_of(tmp_path / "mark.runs") == 1, FAR)
        token.cancel("enough")
        with pytest.raises(Cancelled, match="enough"):
            running.result(FAR)
    until((tmp_path / "mark.cancelled").exists, FAR)
    assert cloud.rows()[0]["status"] == "CANCELLED"


def test_a_timeout_cancels_the_job(cloud: Pool, tmp_path: Path) -> None:
    remote = placed(gate("watched"), cloud)
    timed = RemoteGraph(endpoint=remote.route.clients[0], graph_id=remote.contract.graph_id, timeout=2.0)
    with pytest.raises(TimedOut):
        timed.run({"path": str(tmp_path / "mark"), "x": 1})
    until((tmp_path / "mark.cancelled").exists, FAR)
    until(lambda: cloud.rows()[0]["status"] not in ("IN_QUEUE", "IN_PROGRESS"), FAR)


def test_a_cold_start_is_shown_and_then_the_call_runs(make_pool: Callable[..., Pool]) -> None:
    pool, texts = make_pool("late"), []
    client = pool.registry().client("cloud")

    def run() -> Any:
        with enter_run(progress=lambda place, done, total, text: texts.append(text)):
            return placed(total(), pool).run({"x": torch.ones(2)})

    health = loop_thread().run(client.health())
    assert (health["serverless"], health["workers"]["running"]) == (True, 0)
    with in_background(run) as running:
        until(lambda: pool.jobs()["inQueue"] == 1, FAR)
        pool.work("slowcoach")
        assert running.result(FAR) == {"y": 2.0}


def test_a_call_that_waits_for_a_worker_says_so(make_pool: Callable[..., Pool], cloud: Pool) -> None:
    """The contract comes from a worker of another pool, so that the call itself is what waits."""
    pool = make_pool("empty")
    client, texts = pool.registry(budget={"max_queue_seconds": 8}).client("cloud"), []
    channel, deployed = client.channel, placed(total(), cloud).route.clients[0].channel
    assert isinstance(channel, QueueChannel)
    assert isinstance(deployed, QueueChannel)
    client.facts = {}
    channel._deployments.update(deployed._deployments)
    graph_id = next(name for name in channel._deployments if name.startswith("total"))
    with enter_run(progress=lambda place, done, total, text: texts.append(text)), pytest.raises(TimedOut, match="max_queue_seconds"):
        RemoteGraph(endpoint=client, graph_id=graph_id).run({"x": torch.ones(2)})
    assert any("starting a worker: 0 initializing" in str(text) for text in texts), texts
    assert pool.rows()[0]["status"] == "CANCELLED"


# -- what costs money -------------------------------------------------------------------------------------------------------


def test_a_lost_worker_is_replaced_within_the_budget(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    pool = make_pool("lost")
    first = pool.work("crack")
    remote, mark = placed(gate(), pool), tmp_path / "mark"
    once = placed(gate(), pool, budget={"max_attempts": 1})
    with in_background(lambda: once.run({"path": str(mark), "x": 1})) as running:
        until(lambda: count_of(tmp_path / "mark.runs") == 1, FAR)
        pool.kill(first)
        with pytest.raises(EndpointFailed, match=r"lost the worker of the call.*max_attempts") as caught:
            running.result(FAR)
        assert caught.value.details["attempts"] == 1
    second = pool.work("weld")
    with in_background(lambda: remote.run({"path": str(mark), "x": 7})) as running:
        until(lambda: count_of(tmp_path / "mark.runs") == 2, FAR)
        pool.kill(second)
        pool.work("solder")
        until(lambda: count_of(tmp_path / "mark.runs") == 3, FAR)
        mark.touch()
        assert running.result(FAR) == {"y": 7}


def test_a_spent_budget_refuses_calls_and_lets_a_fallback_run(cloud: Pool) -> None:
    facts = {"budget": {"max_total_seconds": 0.5}}

    def spend() -> None:
        remote = placed(total(), cloud, **facts)
        while True:
            remote.run({"x": torch.ones(2)})

    with pytest.raises(BudgetSpent, match="max_total_seconds"):
        spend()
    before = sum(cloud.jobs().values())
    registry = cloud.registry({"total": {"replicas": ["cloud"], "fallback": "local"}}, default="local", **facts)
    assert total().place(registry).run({"x": torch.ones(2)}) == {"y": 2.0}
    assert sum(cloud.jobs().values()) == before


# -- bad input --------------------------------------------------------------------------------------------------------------


def test_an_unknown_id_a_wrong_key_and_a_missing_one_have_one_clear_error_each(cloud: Pool, gateway: GatewayProcess) -> None:
    with pytest.raises(UnknownEndpoint, match=r"'nowhere'.*Correct the id"):
        RemoteGraph("runpod://nowhere", "total").prepare()
    with calling(gateway, "wrong-key-0815"), pytest.raises(AccessDenied, match="API key") as refused:
        RemoteGraph("runpod://cloud", "total").prepare()
    assert "wrong-key-0815" not in str(refused.value)
    with calling(gateway, None), pytest.raises(InvalidConfig, match="RUNPOD_API_KEY"):
        RemoteGraph("runpod://cloud", "total").prepare()
    registry = EndpointRegistry({"cloud": {"url": "runpod://empty", "token_env": "KEY_OF_NOBODY"}})
    with pytest.raises(InvalidConfig, match="token_env"):
        loop_thread().run(registry.client("cloud").capabilities())


@pytest.mark.parametrize(
    "facts,wrong",
    [
        ({"budget": {"max_attempts": 0}}, "max_attempts"),
        ({"budget": {"max_seconds": "long"}}, "max_seconds"),
        ({"budget": {"patience": 3}}, "max_attempts"),
        ({"budget": 3}, "budget"),
        ({"store": "relative/folder"}, "artifact store must be"),
        ({"store": "ftp://bucket/x"}, "artifact store must be"),
        ({"store": "s3://key:planted-secret@bucket/x"}, "credentials"),
        ({"headers": {"A": "b"}}, "headers"),
        ({"token": "planted-secret"}, "token"),
    ],
)
def test_a_mistake_in_endpoints_yaml_is_named_without_a_secret(facts: dict[str, Any], wrong: str) -> None:
    with pytest.raises(InvalidConfig, match=wrong) as caught:
        EndpointRegistry({"cloud": {"url": "runpod://abc", **facts}})
    assert "planted-secret" not in str(caught.value)
    assert "cloud" in str(caught.value)


def test_settings_of_serverless_endpoints_belong_to_them_only() -> None:
    with pytest.raises(InvalidConfig, match="budget"):
        EndpointRegistry({"forge": {"url": "http://forge.lan", "budget": {}}})
    config = {"url": "runpod://abc", "token_env": "KEY", "store": "gs://bucket/x", "budget": {"max_attempts": 5}}
    assert EndpointRegistry({"cloud": config}).to_dict()["endpoints"]["cloud"] == config


def test_workers_without_our_service_and_of_another_version_are_named(make_pool: Callable[..., Pool]) -> None:
    foreign, newer = make_pool("foreign"), make_pool("newer")
    foreign.foreign("stranger", FOREIGN, "")
    newer.foreign("future", FOREIGN, json.dumps({"endpoint": {"protocol": 99, "version": "9"}}))
    with pytest.raises(ProtocolMismatch, match=r"runpod://foreign.*yggdrasill worker serverless") as caught:
        placed(total(), foreign).prepare()
    assert "Missing 'workflow' parameter" in str(caught.value)
    assert "/srv/secret" not in str(caught.value)
    with pytest.raises(ProtocolMismatch, match=r"version 99.*Install the same version"):
        placed(total(), newer).prepare()


def test_an_api_that_is_lost_is_unreachable_and_the_fallback_runs(cloud: Pool) -> None:
    before = os.environ["RUNPOD_ENDPOINT_BASE_URL"]
    os.environ["RUNPOD_ENDPOINT_BASE_URL"] = "http://127.0.0.1:9/v2"
    try:
        registry = EndpointRegistry({"cloud": {"url": "runpod://unheard-of"}}, {"total": {"replicas": ["cloud"], "fallback": "local"}})
        assert total().place(registry).run({"x": torch.ones(2)}) == {"y": 2.0}
    finally:
        os.environ["RUNPOD_ENDPOINT_BASE_URL"] = before


def test_the_end_of_the_process_cancels_what_it_has_queued(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool("failing")
    with in_background(lambda: RemoteGraph(pool.url, "total").prepare()) as running:
        until(lambda: pool.jobs()["inQueue"] == 1, FAR)
        loop_thread().close()
        assert running.exception(FAR) is not None
    until(lambda: pool.rows()[0]["status"] == "CANCELLED", FAR)


def test_no_key_is_in_what_workers_and_the_gateway_wrote(cloud: Pool, gateway: GatewayProcess) -> None:
    assert "planted-secret" not in cloud.logs()
    assert GATEWAY_TOKEN not in gateway.log()
