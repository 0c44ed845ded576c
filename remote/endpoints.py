"""The registry: which endpoints there are, and which part of a project runs on which. It is a resolver of the levels' ``from_config``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import DuplicateName, InvalidArgument, InvalidConfig, UnknownEndpoint, format_options, unknown_name
from yggdrasill.foundation.config import read_document
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.client import EndpointClient, is_below
from yggdrasill.remote.endpoint import Endpoint, client_of
from yggdrasill.remote.placement import LOCAL, Placement, ProjectPart, match_keys, name_of
from yggdrasill.remote.registry_file import read_secrets, secrets_path, write_registry, write_secrets
from yggdrasill.remote.retry import RetryPolicy

if TYPE_CHECKING:
    from typing_extensions import Self

    from yggdrasill.remote.resolvers import RegistryProject

__all__ = ["EndpointRegistry"]


class EndpointRegistry:
    """Endpoints by name, placements by key, and where everything else runs.

    A key is a graph id, or the path ``stage/pipeline/graph`` or an end of it; of several that fit a part the longest holds,
    and a key of a pipeline or stage places it whole, but for what keys inside place elsewhere. ``strict_build`` makes another
    torch build an error, ``artifact_client`` is where values wait for their journey, ``retry_policy`` how long a lost endpoint is tried.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Any] | None = None,
        graphs: Mapping[str, Any] | None = None,
        default: Any = LOCAL,
        *,
        secrets: Mapping[str, str] | None = None,
        path: str | Path | None = None,
        strict_build: bool = False,
        artifact_client: ArtifactClient | None = None,
        retry_policy: RetryPolicy | None = None,
    ) -> None:
        self.artifact_client = artifact_client or ArtifactClient.shared()
        self.retry_policy = retry_policy
        self.path = None if path is None else Path(path)
        self.strict_build = strict_build
        where = "endpoints" if path is None else str(path)
        tokens = secrets or {}
        self.endpoints: dict[str, Endpoint] = {}
        for name, config in (endpoints or {}).items():
            self._check_name(name, where)
            known = config if isinstance(config, Endpoint) else Endpoint.from_config(name, config, where, tokens.get(name))
            EndpointClient(known.url, name=name)
            self.endpoints[name] = known
        self.placements = {str(key): Placement.of(value, self.endpoints, f"{where}, graphs.{key}") for key, value in (graphs or {}).items()}
        self.default = Placement.of(default, self.endpoints, f"{where}, default")
        self._clients: dict[str, EndpointClient] = {}

    def __repr__(self) -> str:
        return f"<EndpointRegistry {sorted(self.endpoints)}, {len(self.placements)} placements, default {self.default.to_config()!r}>"

    @staticmethod
    def _check_name(name: object, where: str) -> None:
        if not isinstance(name, str) or not name.strip() or name == LOCAL or "/" in name:
            raise InvalidConfig(f"{where}: an endpoint's name is a text without '/' and not 'local', got {name!r}")

    # -- documents ----------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], *, where: str = "endpoints", **options: Any) -> Self:
        """From ``{"endpoints", "graphs", "default"}``.

        Raises:
            InvalidConfig, UnknownEndpoint
        """
        stray = sorted(set(map(str, document)) - {"endpoints", "graphs", "default"})
        if stray:
            raise InvalidConfig(f"{where}: there is {format_options(stray)}; it takes 'endpoints', 'graphs' and 'default'")
        for section in ("endpoints", "graphs"):
            if not isinstance(document.get(section) or {}, Mapping):
                raise InvalidConfig(f"{where}: {section!r} is a mapping by name, got {type(document[section]).__name__}")
        return cls(document.get("endpoints"), document.get("graphs"), document.get("default", LOCAL), **options)

    @classmethod
    def from_yaml(cls, path: str | Path, **options: Any) -> Self:
        """From an endpoints.yaml, with the tokens of the secrets.yaml (mode 0600) beside it.

        Raises:
            MissingFile; InvalidConfig: the message names file, line and column. UnknownEndpoint
        """
        document = read_document(path)
        return cls.from_dict(document, where=str(path), secrets=read_secrets(secrets_path(path)), path=path, **options)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without tokens."""
        return {
            "endpoints": {name: endpoint.to_config() for name, endpoint in self.endpoints.items()},
            "graphs": {key: placement.to_config() for key, placement in self.placements.items()},
            "default": self.default.to_config(),
        }

    def to_yaml(self, path: str | Path | None = None) -> None:
        """Write the registry, and the tokens it holds to the secrets.yaml beside it, each whole or not at all.

        Raises:
            InvalidArgument: no path here and none it was read from. StorageFailed
        """
        target = Path(path) if path is not None else self.path
        if target is None:
            raise InvalidArgument("this registry was read from no file; give to_yaml() a path")
        write_secrets(secrets_path(target), {name: endpoint.secret for name, endpoint in self.endpoints.items() if endpoint.secret})
        write_registry(target, self.to_dict())

    # -- endpoints ----------------------------------------------------------------------------------------------

    def add(self, name: str, url: str, *, token: str | None = None, token_env: str | None = None, ca: str | None = None) -> None:
        """Add an endpoint; a ``token`` is written to secrets.yaml only.

        Raises:
            DuplicateName, InvalidConfig, InvalidArgument (no url)
        """
        self._check_name(name, "endpoints")
        if name in self.endpoints:
            raise DuplicateName(f"there is an endpoint {name!r}; remove it first or choose another name")
        EndpointClient(url, name=name)
        self.endpoints[name] = Endpoint(name, url, token_env, ca, token)

    def remove(self, name: str) -> None:
        """Take an endpoint out.

        Raises:
            UnknownEndpoint. InvalidArgument: parts are placed on it.
        """
        self.endpoint(name)
        users = [key for key, placement in {**self.placements, "default": self.default}.items() if name in placement.endpoints]
        if users:
            raise InvalidArgument(f"endpoint {name!r} still runs {format_options(users)}; place those elsewhere first")
        del self.endpoints[name]
        self._clients.pop(name, None)

    def place_key(self, key: str, placement: Any) -> None:
        """Say where the parts that ``key`` names run; see `Placement.of`."""
        self.placements[key] = Placement.of(placement, self.endpoints, f"graphs.{key}")

    def endpoint(self, name: str) -> Endpoint:
        """The endpoint of that name. Raises `UnknownEndpoint`."""
        known = self.endpoints.get(name)
        if known is None:
            raise unknown_name("endpoint", name, self.endpoints, "Add it with: yggdrasill endpoints add NAME URL", UnknownEndpoint)
        return known

    def client(self, name: str) -> EndpointClient:
        """The client of an endpoint, one for all who ask. Raises `UnknownEndpoint`."""
        endpoint = self.endpoint(name)
        if name not in self._clients:
            client = endpoint.client()
            client.peers = self._peer
            self._clients[name] = client
        return self._clients[name]

    def client_for(self, url: str) -> EndpointClient:
        """A client for a url, with the credential of the endpoint whose url it lies below, else the environment's."""
        fitting = [endpoint for endpoint in self.endpoints.values() if is_below(url, endpoint.url)]
        if not fitting:
            return client_of(url)
        bound = max(fitting, key=lambda endpoint: len(endpoint.url))
        return EndpointClient(url, token=bound.token, name=bound.name, ca=bound.ca, transport=bound.transport)

    def _peer(self, url: str) -> EndpointClient | None:
        """The client of the endpoint that a url given by another endpoint lies at."""
        name = next((name for name, endpoint in self.endpoints.items() if is_below(url, endpoint.url)), None)
        return None if name is None else self.client(name)

    # -- placing ------------------------------------------------------------------------------------------------

    def placements_of(self, parts: list[ProjectPart], project: str | None = None) -> dict[tuple[str, ...], Placement]:
        """What the keys say about a whole project's parts, by path; ``project`` is the id of the project itself.

        Raises:
            InvalidConfig: an ambiguous key. Warns about keys that name no part.
        """
        found, idle = match_keys(self.placements, parts, project)
        if idle:
            names = format_options([part.name for part in parts], limit=20)
            warnings.warn(
                f"endpoints: {format_options(idle)} under 'graphs' names no part of this project; there is {names}",
                RuntimeWarning,
                stacklevel=4,
            )
        return {path: self.placements[key] for path, key in found.items()}

    def places(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Where the parts of a project's config run, by path: an endpoint's name, or several joined by ``|``; the root is ``""``.

        Raises:
            InvalidConfig: an ambiguous key.
        """
        parts = list(ProjectPart.of_config((), config).walk())
        placements = self.placements_of(parts, name_of(config))
        found = {part.name: placements.get(part.path) for part in parts}
        named = {name: "|".join(placement.endpoints) or LOCAL for name, placement in found.items() if placement is not None}
        return {"": "|".join(self.default.endpoints) or LOCAL, **named}

    def resolve(self, path: tuple[str, ...], config: Mapping[str, Any]) -> Any | None:
        """The runnable for one part (see `Resolver`); ambiguous keys are found by `project` and `place`, which see all parts."""
        from yggdrasill.remote.resolvers import RegistryProject

        return RegistryProject(self).resolve(path, config)

    @contextmanager
    def project(self, config: Mapping[str, Any]) -> Iterator[RegistryProject]:
        """The resolver for one whole project, whose keys are checked against everything it was asked about."""
        from yggdrasill.remote.resolvers import RegistryProject

        resolver = RegistryProject(self, name_of(config))
        yield resolver
        resolver.finish()

    def place(self, project: Any) -> Any:
        """A copy of a graph, pipeline, stage or world in which the parts placed elsewhere are proxies; see `yggdrasill.remote.placing`."""
        from yggdrasill.remote.placing import place

        return place(project, self)
