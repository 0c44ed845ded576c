"""What is sent to an endpoint so that it can run a part: a deployment, or a workflow that accompanies each call."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yggdrasill.errors import PayloadTooLarge, UnknownArtifact, UnknownBlockType, YggdrasillError, unknown_name
from yggdrasill.foundation.config import resolve_ref
from yggdrasill.foundation.container import Container
from yggdrasill.foundation.graph import Graph
from yggdrasill.foundation.kinds import kinds
from yggdrasill.foundation.pool import names_model
from yggdrasill.protocol.states import FINAL, WAITING_INPUTS
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.calls import follow_job, job_output
from yggdrasill.remote.channel import StreamEvent
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE, check_prompt, ports_of
from yggdrasill.remote.contract import RemoteContract, check_build, fetch_contract
from yggdrasill.remote.observers import TransferMeter
from yggdrasill.remote.preflight import check_at
from yggdrasill.remote.retry import Retry
from yggdrasill.remote.uploads import Supply
from yggdrasill.values.payload import blake3_hex

__all__ = [
    "IDLE_SECONDS",
    "MAX_STATE_BYTES",
    "STATEFUL_IDLE_SECONDS",
    "DeploymentSpec",
    "WorkflowSpec",
    "deploy_wire",
    "inline_refs",
    "state_without_checkpoint",
]

OnEvent = Callable[[StreamEvent], None]
#: Larger states count as weights, which must be on the endpoint as checkpoints.
MAX_STATE_BYTES = 16 << 20
BUILD_SECONDS = 2.0
"""How long the response to a deployment is awaited before its job is followed."""
IDLE_SECONDS = 3600.0
"""Seconds without calls after which an endpoint removes a part without state. The next call deploys it again."""
STATEFUL_IDLE_SECONDS = 86400.0
"""Seconds without calls after which an endpoint removes a stateful part: one day, as for finished jobs."""


@dataclass(frozen=True)
class DeploymentSpec:
    """A part to be deployed. Its id consists of ``name`` and a hash of its content, so equal parts share a deployment.

    A stateful part gets a unique id, because its state belongs to one project. The endpoint removes a part after ``idle_after`` seconds
    without calls, a stateful one after ``stateful_idle_after``: every edit of a part makes another deployment.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    state: Mapping[str, Any] = field(default_factory=dict)
    artifact_client: ArtifactClient = field(default_factory=ArtifactClient.shared)
    idle_after: float = IDLE_SECONDS
    stateful_idle_after: float = STATEFUL_IDLE_SECONDS
    salt: str = field(default_factory=lambda: secrets.token_hex(4))

    async def ensure(
        self, client: EndpointClient, retry: Retry, *, strict_build: bool = False, on_event: OnEvent | None = None
    ) -> RemoteContract:
        """Deploy the part unless it is deployed, and return its contract. ``on_event`` receives the events of the job that builds it.

        Raises:
            UnknownBlockType: the endpoint lacks block types.
            PayloadTooLarge: too much state.
            InvalidConfig, CannotTravel, RemoteError
        """
        await check_build(client, retry, strict=strict_build)
        if self.kind == "comfy":
            await check_at(self.config["prompt"], client, retry)
        else:
            self._check_blocks(client)
        graph_id = f"{self.name}-{self._digest()[:12]}"
        created = await self._put(client, graph_id, retry, self.idle_after, on_event)
        contract = await fetch_contract(client, graph_id, retry)
        if not contract.stateful:
            return contract
        if created:
            await retry.persist(lambda: client.remove(graph_id))
        await self._put(client, f"{graph_id}-{self.salt}", retry, self.stateful_idle_after, on_event)
        return await fetch_contract(client, f"{graph_id}-{self.salt}", retry)

    def _check_blocks(self, client: EndpointClient) -> None:
        available = (client.facts or {}).get("block_types")
        if not isinstance(available, list):
            return
        missing = sorted({name for name in _block_types(self.config) if name not in available})
        if missing:
            hint = f"{self.kind} {self.name!r} needs {', '.join(map(repr, missing))} at endpoint {client.name!r}. Start the endpoint with the plugin that registers it."
            error = unknown_name("block type", missing[0], available, hint, UnknownBlockType)
            error.details.update(endpoint=client.name, missing=missing)
            raise error

    def _digest(self) -> str:
        packed = self.artifact_client.pack(dict(self.state))
        with packed:
            text = json.dumps(
                [self.kind, self.config, packed.wire["skeleton"], [_content_of(entry) for entry in packed.wire["payloads"]]], sort_keys=True
            )
        return blake3_hex(memoryview(text.encode("utf-8")))

    async def _put(self, client: EndpointClient, graph_id: str, retry: Retry, idle_after: float, on_event: OnEvent | None) -> bool:
        with self.artifact_client.pack(dict(self.state)) as packed:
            size = sum(entry["nbytes"] for entry in packed.wire["payloads"])
            if size > MAX_STATE_BYTES:
                raise PayloadTooLarge(
                    f"{self.kind} {self.name!r} has {size >> 20} MiB of state outside checkpoints, and the limit is {MAX_STATE_BYTES >> 20} MiB; save it "
                    "with save_checkpoint(), copy the file to the endpoint, and name it as the block's checkpoint_ref",
                    nbytes=size,
                    bound=MAX_STATE_BYTES,
                )
            body = {"kind": self.kind, "config": self.config, "state": packed.wire if self.state else None, "idle_after": idle_after}
            supply = Supply(client, self.state, self.artifact_client, retry, TransferMeter())
            return await deploy_wire(client, graph_id, body, packed.artifacts, supply, retry, on_event)


async def deploy_wire(
    client: EndpointClient,
    graph_id: str,
    body: Mapping[str, Any],
    artifacts: Sequence[str],
    supply: Supply,
    retry: Retry,
    on_event: OnEvent | None = None,
) -> bool:
    """Deploy ``{"kind", "config", "state", "idle_after"}`` under an id, with the ``artifacts`` of its state from ``supply``.

    Return whether the endpoint created the deployment. Raise the error of the job that builds it.
    """
    while True:
        if artifacts:
            missing = await retry.persist(lambda: client.missing(list(artifacts)))
            if missing:
                await supply.send(missing)
        try:
            answer = await retry.persist(lambda: client.deploy(graph_id, body, BUILD_SECONDS))
        except UnknownArtifact:
            retry.check_deadline()
            continue
        if "job_id" in answer:
            return (await _built(client, answer, retry, supply, on_event)).get("created") is True
        return answer.get("created") is True


async def _built(client: EndpointClient, row: dict[str, Any], retry: Retry, supply: Supply, on_event: OnEvent | None) -> Mapping[str, Any]:
    """Return the result of the job that builds the deployment, or raise its error."""
    if row.get("status") == WAITING_INPUTS:
        row = await supply.send_to_job(row)
    if row.get("status") not in FINAL or ("output" not in row and row.get("error") is None):
        row = await follow_job(client, row, retry, supply, on_event or _ignore)
    try:
        return job_output(client, row)
    except YggdrasillError as error:
        # Only a call's job marks an error as one of the run.
        error.details.pop("job", None)
        raise


def _ignore(event: StreamEvent) -> None:
    """Ignore the events of a job that no caller observes."""


def _content_of(entry: Mapping[str, Any]) -> Any:
    return [entry["dtype"], entry["shape"], entry.get("strides"), entry.get("artifact") or entry.get("inline")]


def _block_types(config: Any) -> Iterator[str]:
    """Yield the types of all nodes in a config of any level."""
    inside = {name for kind in kinds() if kind.children for name in (kind.children.key, kind.children.config_key)}
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "nodes" and isinstance(value, list):
                yield from (node["block_type"] for node in value if isinstance(node, Mapping) and isinstance(node.get("block_type"), str))
            elif key in inside or (isinstance(value, Mapping) and any(name in value for name in (*inside, "nodes"))):
                yield from _block_types(value)
    elif isinstance(config, list):
        for entry in config:
            yield from _block_types(entry)


def state_without_checkpoint(part: Container) -> dict[str, Any]:
    """Return the state of every block below ``part`` that names no checkpoint, by child ids; a shared block occurs once."""
    return _collect_state(part, part.state_dict())


def _collect_state(part: Container, state: Mapping[str, Any]) -> dict[str, Any]:
    collected = {}
    for child_id, child_state in state.items():
        child = part.children[child_id]
        if isinstance(child, Container):
            below = _collect_state(child, child_state)
            if below:
                collected[child_id] = below
        elif isinstance(part, Graph):
            node = part.get_node(child_id)
            if not names_model(node.config):
                collected[child_id] = child_state
    return collected


class WorkflowSpec:
    """The API prompt ``prompt`` with ports, sent with each call. ``graph_id`` is its name in messages and job rows.

    Raises:
        InvalidConfig, LimitExceeded: as `yggdrasill.remote.comfy_graph.ComfyGraph`.
    """

    #: Whether the endpoint's model files must be equal to this ComfyUI's.
    compare_models = True

    def __init__(self, prompt: Mapping[str, Any], graph_id: str = "workflow") -> None:
        self.prompt = check_prompt(prompt, graph_id)
        inputs, outputs = (
            [port.spec(True) for port in ports_of(self.prompt, kind, graph_id).values()] for kind in (INPUT_NODE, OUTPUT_NODE)
        )
        #: The ports follow from the prompt, so no endpoint is asked.
        self.contract = RemoteContract(graph_id, "comfy", "", inputs, outputs)

    async def check(self, client: EndpointClient, retry: Retry, *, strict_build: bool = False) -> RemoteContract:
        """Return the contract after checking, as far as possible, that an endpoint can run the workflow.

        Raises:
            InvalidConfig, UnknownBlockType, MissingFile, InvalidStructure, CheckpointMismatch: as `check_at`.
            EndpointUnreachable, AccessDenied, ProtocolMismatch; BuildMismatch if ``strict_build``
        """
        await check_build(client, retry, strict=strict_build)
        await check_at(self.prompt, client, retry, compare_models=self.compare_models)
        return self.contract


def inline_refs(config: Any, base_dir: str | Path | None, where: str) -> Any:
    """Return a graph, pipeline or stage config with every ``ref`` replaced by its content: an endpoint reads no file that a config names.

    Raises:
        MissingFile, InvalidConfig
    """
    document, base = resolve_ref(config, base_dir, where)
    if not isinstance(document, Mapping):
        return document
    inlined = dict(document)
    for keys in (kind.children for kind in kinds() if kind.children is not None):
        entries = inlined.get(keys.key)
        if isinstance(entries, list):
            inlined[keys.key] = [
                _entry(entry, keys.config_key, base, f"{where}, {keys.key}[{number}]") for number, entry in enumerate(entries)
            ]
    if isinstance(inlined.get("nodes"), list):
        inlined["nodes"] = [_node(node, base, f"{where}, nodes[{number}]") for number, node in enumerate(inlined["nodes"])]
    return inlined


def _entry(entry: Any, inner: str, base: Path | None, where: str) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    rest = {key: value for key, value in entry.items() if key not in ("ref", inner)}
    if isinstance(entry.get("ref"), str):
        return {**rest, inner: inline_refs({"ref": entry["ref"]}, base, where)}
    return {**rest, inner: inline_refs(entry[inner], base, where)} if entry.get(inner) is not None else entry


def _node(node: Any, base: Path | None, where: str) -> Any:
    if not isinstance(node, Mapping) or "config" not in node:
        return node
    return {**node, "config": resolve_ref(node["config"], base, f"{where}.config")[0]}
