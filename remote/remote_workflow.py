"""A ComfyUI workflow that runs at an endpoint without being deployed there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.calls import ORPHAN_AFTER
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.endpoint import Endpoint, client_of
from yggdrasill.remote.remote_graph import RemoteGraph
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.remote.route import Route
from yggdrasill.remote.workflow import Workflow

__all__ = ["RemoteWorkflow"]


class RemoteWorkflow(RemoteGraph):
    """The API prompt ``prompt``, whose Graph Input and Graph Output nodes are its ports, at a ComfyUI with this extension.

    Every call sends the prompt along; nothing stays at the endpoint but the job's row. ``endpoints`` are tried as ``policy`` says
    (``first``, ``round_robin`` or ``least_busy``); ``url`` and ``token``, or one ``endpoint``, stand for a single one. One with more than
    ``max_queued`` jobs waiting is passed over. The rest is as for `RemotePart`.

    Raises:
        InvalidConfig, LimitExceeded: the prompt. InvalidArgument: no endpoint, or more than one way to say which.
    """

    def __init__(
        self,
        prompt: Mapping[str, Any],
        graph_id: str = "workflow",
        *,
        url: str | None = None,
        token: str | None = None,
        endpoint: Endpoint | EndpointClient | None = None,
        endpoints: Sequence[Endpoint | EndpointClient] = (),
        policy: str = "first",
        max_queued: int | None = None,
        timeout: float | None = None,
        orphan_after: float = ORPHAN_AFTER,
        retry_policy: RetryPolicy | None = None,
        strict_build: bool = False,
        artifact_client: ArtifactClient | None = None,
        fallback: Callable[[], Any] | None = None,
    ) -> None:
        if (url is not None) + (endpoint is not None) + bool(endpoints) != 1:
            raise InvalidArgument("a remote workflow needs one of url, endpoint and endpoints")
        clients = [client_of(where, token) for where in (url, endpoint, *endpoints) if where is not None]
        workflow = Workflow(prompt, graph_id)
        route = Route(
            clients, graph_id, workflow=workflow, policy=policy, max_queued=max_queued, retry_policy=retry_policy, strict_build=strict_build
        )
        config = {"kind": "comfy", "graph_id": graph_id, "prompt": workflow.prompt}
        super().__init__(
            route=route, config=config, timeout=timeout, orphan_after=orphan_after, artifact_client=artifact_client, fallback=fallback
        )
