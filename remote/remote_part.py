"""What remote graphs, stages and worlds have in common: how a caller names the part and says how its calls are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from yggdrasill.errors import InvalidArgument
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.calls import ORPHAN_AFTER
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.endpoint import Endpoint
from yggdrasill.remote.proxy import Proxy
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.remote.route import Route

__all__ = ["RemotePart"]


class RemotePart(Proxy):
    """The part that ``url`` serves as ``graph_id``.

    ``endpoint`` (an `Endpoint` or a client) stands for url and token; without a ``token`` the environment's is used where it is
    bound to that url. ``timeout`` bounds a call in seconds, ``retry_policy`` how long a lost endpoint is tried again, ``orphan_after`` how long
    the endpoint goes on with a call whose caller is lost. ``strict_build`` makes another torch build an error.
    ``route`` stands for all that says where; ``config`` and ``fallback`` are as for `Proxy`.
    """

    #: Whether a ``fallback`` may stand in for it: what it keeps at its endpoint is not here.
    may_run_here: ClassVar[bool] = True

    def __init__(
        self,
        url: str | None = None,
        graph_id: str | None = None,
        *,
        token: str | None = None,
        endpoint: Endpoint | EndpointClient | None = None,
        timeout: float | None = None,
        orphan_after: float = ORPHAN_AFTER,
        retry_policy: RetryPolicy | None = None,
        strict_build: bool = False,
        artifact_client: ArtifactClient | None = None,
        route: Route | None = None,
        config: Mapping[str, Any] | None = None,
        fallback: Callable[[], Any] | None = None,
    ) -> None:
        own = route or Route.single(url, graph_id, token=token, endpoint=endpoint, retry_policy=retry_policy, strict_build=strict_build)
        super().__init__(own, config=config, fallback=fallback, timeout=timeout, orphan_after=orphan_after, artifact_client=artifact_client)
        if fallback is not None and not self.may_run_here:
            raise InvalidArgument(f"{self!r} keeps its content where it runs, so it has no local fallback; place what is in it instead")
