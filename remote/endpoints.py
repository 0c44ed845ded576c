"""The registry: endpoints by name, and which part of a project runs where. It is a resolver for ``from_config`` of all levels."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import DuplicateName, InvalidArgument, InvalidConfig, UnknownEndpoint, YggdrasillError, format_options, unknown_name
from yggdrasill.foundation.config import parse_document, read_document
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.client import EndpointClient, is_below
from yggdrasill.remote.endpoint import Endpoint, client_of
from yggdrasill.remote.placement import LOCAL, Placement, ProjectPart, match_keys, name_of
from yggdrasill.remote.registry_file import edit_registry, read_secrets, secrets_path, write_registry, write_secrets
from yggdrasill.remote.retry import RetryPolicy

if TYPE_CHECKING:
    from typing_extensions import Self

    from yggdrasill.remote.placing import RegistryProject

__all__ = ["EndpointRegistry", "UrlResolver"]


class EndpointRegistry:
    """Endpoints by name, placements by key, and the default placement.

    A key is a graph id, or the path ``stage/pipeline/graph`` or a suffix of it; of several keys that match a part the longest applies.
    A key of a pipeline or stage places it whole, except for parts inside that other keys place. ``strict_build`` makes a different torch
    build an error, ``artifact_client`` stores outgoing values, ``retry_policy`` says how long a lost endpoint is tried again.
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
            endpoint = config if isinstance(config, Endpoint) else Endpoint.from_config(name, config, where, tokens.get(name))
            EndpointClient(endpoint.url, name=name)
            self.endpoints[name] = endpoint
        self.placements = {str(key): Placement.of(value, self.endpoints, f"{where}, graphs.{key}") for key, value in (graphs or {}).items()}
        self.default = Placement.of(default, self.endpoints, f"{where}, default")
        self._clients: dict[str, EndpointClient] = {}
        #: Returns the token of an endpoint at each request; a host that reads its files again sets it.
        self.token_of: Callable[[Endpoint], str | None] = _token_of

    def __repr__(self) -> str:
        return f"<EndpointRegistry {sorted(self.endpoints)}, {len(self.placements)} placements, default {self.default.to_config()!r}>"

    @staticmethod
    def _check_name(name: object, where: str) -> None:
        if not isinstance(name, str) or not name.strip() or name == LOCAL or "/" in name:
            raise InvalidConfig(f"{where}: an endpoint's name must be a text without '/' and not 'local', got {name!r}")

    # -- documents ----------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], *, where: str = "endpoints", **options: Any) -> Self:
        """Build from ``{"endpoints", "graphs", "default"}``.

        Raises:
            InvalidConfig, UnknownEndpoint
        """
        unknown = sorted(set(map(str, document)) - {"endpoints", "graphs", "default"})
        if unknown:
            raise InvalidConfig(f"{where}: unknown keys {format_options(unknown)}; it takes 'endpoints', 'graphs' and 'default'")
        for section in ("endpoints", "graphs"):
            if not isinstance(document.get(section) or {}, Mapping):
                raise InvalidConfig(f"{where}: {section!r} must be a mapping by name, got {type(document[section]).__name__}")
        return cls(document.get("endpoints"), document.get("graphs"), document.get("default", LOCAL), **options)

    @classmethod
    def from_yaml(cls, path: str | Path, **options: Any) -> Self:
        """Read an endpoints.yaml, with the tokens of the secrets.yaml (mode 0600) beside it.

        Raises:
            MissingFile
            InvalidConfig: the message names file, line and column.
            UnknownEndpoint
        """
        document = read_document(path)
        return cls.from_dict(document, where=str(path), secrets=read_secrets(secrets_path(path)), path=path, **options)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, without tokens."""
        return {
            "endpoints": {name: endpoint.to_config() for name, endpoint in self.endpoints.items()},
            "graphs": {key: placement.to_config() for key, placement in self.placements.items()},
            "default": self.default.to_config(),
        }

    def to_yaml(self, path: str | Path | None = None) -> None:
        """Write the registry, and its tokens to the secrets.yaml beside it; each file is written completely or not at all.

        In an existing file the lines of entries that have not changed stay as they are, with their comments.

        Raises:
            InvalidArgument: no path, and the registry was not read from a file.
            StorageFailed
        """
        target = Path(path) if path is not None else self.path
        if target is None:
            raise InvalidArgument("this registry was not read from a file; pass a path to to_yaml()")
        write_secrets(secrets_path(target), {name: endpoint.secret for name, endpoint in self.endpoints.items() if endpoint.secret})
        write_registry(target, self.to_dict(), self._edited(target))

    def _edited(self, target: Path) -> str | None:
        """Return the text of an existing file with the changed entries, or None if it has to be written anew."""
        document = self.to_dict()
        with contextlib.suppress(OSError, ValueError, YggdrasillError):
            text = target.read_bytes().decode("utf-8")
            edited = edit_registry(text, _document_of(text, target), document)
            if edited is not None and _document_of(edited, target) == document:
                return edited
        return None

    # -- endpoints ----------------------------------------------------------------------------------------------

    def add(self, name: str, url: str, *, token: str | None = None, token_env: str | None = None, ca: str | None = None) -> None:
        """Add an endpoint. A ``token`` is written to secrets.yaml only.

        Raises:
            DuplicateName, InvalidConfig, InvalidArgument (invalid URL)
        """
        self._check_name(name, "endpoints")
        if name in self.endpoints:
            raise DuplicateName(f"endpoint {name!r} exists; remove it first or choose another name")
        EndpointClient(url, name=name)
        self.endpoints[name] = Endpoint(name, url, token_env, ca, token)

    def replace(self, name: str, url: str, *, token: str | None = None, ca: str | None = None) -> None:
        """Replace the address, the token and the authority of an endpoint; its placements remain. Raise `UnknownEndpoint`, and as `add`."""
        before = self.endpoint(name)
        del self.endpoints[name]
        try:
            self.add(name, url, token=token or (before.secret if before.url == url else None), ca=ca)
        except YggdrasillError:
            self.endpoints[name] = before
            raise
        self._clients.pop(name, None)

    def remove(self, name: str) -> None:
        """Remove an endpoint.

        Raises:
            UnknownEndpoint
            InvalidArgument: parts are placed on it.
        """
        self.endpoint(name)
        users = [key for key, placement in {**self.placements, "default": self.default}.items() if name in placement.endpoints]
        if users:
            raise InvalidArgument(
                f"endpoint {name!r} still runs {format_options(users)}, according to endpoints.yaml; place those on other endpoints first"
            )
        del self.endpoints[name]
        self._clients.pop(name, None)

    def place_key(self, key: str, placement: Any) -> None:
        """Set the placement of the parts that ``key`` names; see `Placement.of`."""
        self.placements[key] = Placement.of(placement, self.endpoints, f"graphs.{key}")

    def endpoint(self, name: str) -> Endpoint:
        """Return the endpoint with that name. Raise `UnknownEndpoint`."""
        endpoint = self.endpoints.get(name)
        if endpoint is None:
            raise unknown_name("endpoint", name, self.endpoints, "Add it with: yggdrasill endpoints add NAME URL", UnknownEndpoint)
        return endpoint

    def client(self, name: str) -> EndpointClient:
        """Return the client of an endpoint, shared by all callers. Raise `UnknownEndpoint`."""
        endpoint = self.endpoint(name)
        if name not in self._clients:
            client = endpoint.client(lambda: self._token(endpoint), lambda: self._read_token(endpoint))
            client.peers = self._peer
            self._clients[name] = client
        return self._clients[name]

    def client_for(self, url: str) -> EndpointClient:
        """Return a client for a URL, with the credential of the endpoint whose URL is its longest prefix, else the environment's."""
        matching = [endpoint for endpoint in self.endpoints.values() if is_below(url, endpoint.url)]
        if not matching:
            return client_of(url)
        longest = max(matching, key=lambda endpoint: len(endpoint.url))
        if url.rstrip("/") == longest.url.rstrip("/"):
            return self.client(longest.name)
        return EndpointClient(
            url, token=lambda: self._token(longest), name=longest.name, ca=longest.ca, renew=lambda: self._read_token(longest)
        )

    def _token(self, endpoint: Endpoint) -> str | None:
        """Return the present token of an endpoint. A token never goes to a URL that it was not stored for."""
        present = self.endpoints.get(endpoint.name)
        return self.token_of(endpoint if present is None or present.url != endpoint.url else present)

    def _read_token(self, endpoint: Endpoint) -> None:
        """Read the token of an endpoint from the registry's file again: it may have been rotated since."""
        present = self.endpoints.get(endpoint.name)
        if self.path is None or present is None or present.url != endpoint.url:
            return
        with contextlib.suppress(YggdrasillError):
            written = EndpointRegistry.from_yaml(self.path).endpoints.get(endpoint.name)
            if written is not None and written.url == endpoint.url:
                self.endpoints[endpoint.name] = written

    def _peer(self, url: str) -> EndpointClient | None:
        """Return the client of the endpoint that a URL received from another endpoint belongs to."""
        name = next((name for name, endpoint in self.endpoints.items() if is_below(url, endpoint.url)), None)
        return None if name is None else self.client(name)

    # -- placing ------------------------------------------------------------------------------------------------

    def placements_of(self, parts: list[ProjectPart], project: str | None = None) -> dict[tuple[str, ...], Placement]:
        """Return the placements of a whole project's parts, by path. ``project`` is the id of the project. Warn about keys without a part.

        Raises:
            InvalidConfig: an ambiguous key.
        """
        found, unused = match_keys(self.placements, parts, project)
        if unused:
            names = format_options([part.name for part in parts], limit=20)
            warnings.warn(
                f"endpoints: {format_options(unused)} under 'graphs' names no part of this project. Available: {names}",
                RuntimeWarning,
                stacklevel=4,
            )
        return {path: self.placements[key] for path, key in found.items()}

    def places(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Return where the parts of a project's config run, by path: an endpoint's name, or several joined by ``|``; the root is ``""``.

        Raises:
            InvalidConfig: an ambiguous key.
        """
        parts = list(ProjectPart.of_config((), config).walk())
        placements = self.placements_of(parts, name_of(config))
        found = {part.name: placements.get(part.path) for part in parts}
        named = {name: "|".join(placement.endpoints) or LOCAL for name, placement in found.items() if placement is not None}
        return {"": "|".join(self.default.endpoints) or LOCAL, **named}

    def resolve(self, path: tuple[str, ...], config: Mapping[str, Any]) -> Any | None:
        """Return the runnable for one part (see `Resolver`). Ambiguous keys are found by `project` and `place`, which see all parts."""
        from yggdrasill.remote.placing import RegistryProject

        return RegistryProject(self).resolve(path, config)

    @contextmanager
    def project(self, config: Mapping[str, Any]) -> Iterator[RegistryProject]:
        """Yield the resolver for one whole project; on exit its keys are checked against all parts that were resolved."""
        from yggdrasill.remote.placing import RegistryProject

        resolver = RegistryProject(self, name_of(config))
        yield resolver
        resolver.finish()

    def place(self, project: Any) -> Any:
        """Return a copy of a graph, pipeline, stage or world whose placed parts are remote; see `yggdrasill.remote.placing`."""
        from yggdrasill.remote.placing import place

        return place(project, self)


def _document_of(text: str, path: Path) -> dict[str, Any]:
    return EndpointRegistry.from_dict(parse_document(text, str(path), yaml=True), where=str(path)).to_dict()


def _token_of(endpoint: Endpoint) -> str | None:
    return endpoint.token


class UrlResolver:
    """Resolves parts whose config names an ``endpoint_url``.

    Credentials come from ``registry``, else from the file that ``YGGDRASILL_ENDPOINTS`` names, else from the environment
    (`token_from_environment`); each is bound to a url prefix.
    """

    def __init__(self, registry: EndpointRegistry | None = None) -> None:
        if registry is None:
            path = os.environ.get("YGGDRASILL_ENDPOINTS")
            registry = EndpointRegistry.from_yaml(path) if path else EndpointRegistry()
        self._registry = registry

    def resolve(self, path: tuple[str, ...], config: Mapping[str, Any]) -> Any | None:
        """Return a proxy for the url, or None for an entry without one."""
        from yggdrasill.remote.placing import served_proxy

        return served_proxy(self._registry, path, config, None) if config.get("endpoint_url") is not None else None
