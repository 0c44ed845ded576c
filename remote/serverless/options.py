"""The settings of a serverless endpoint in endpoints.yaml: its artifact store, and the budget of what costs money."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options
from yggdrasill.remote.serverless.common_stores import check_store

__all__ = ["API_KEY_VARIABLE", "BASE_URL_VARIABLE", "Budget", "ServerlessOptions"]

API_KEY_VARIABLE = "RUNPOD_API_KEY"
"""The environment variable with the API key, unless ``token_env`` names another one."""
BASE_URL_VARIABLE = "RUNPOD_ENDPOINT_BASE_URL"
"""The environment variable with the address of the API."""


@dataclass(frozen=True)
class Budget:
    """What a call may cost.

    ``max_attempts`` bounds how often a call is queued: again only after the worker was lost, never after an error of the run. A job runs for at most
    ``max_seconds`` and waits for a worker for at most ``max_queue_seconds``; then it is cancelled. All jobs of this process together run for at most
    ``max_total_seconds`` (None: without a bound); then further calls are refused.
    """

    max_attempts: int = 2
    max_seconds: float = 3600.0
    max_queue_seconds: float = 1800.0
    max_total_seconds: float | None = None

    @classmethod
    def from_config(cls, config: Any, where: str) -> Budget:
        """Parse ``{max_attempts?, max_seconds?, max_queue_seconds?, max_total_seconds?}``. Raise `InvalidConfig` for another form."""
        names = [each.name for each in fields(cls)]
        if not isinstance(config, Mapping) or not set(config) <= set(names):
            raise InvalidConfig(f"{where}: budget must be a mapping with {format_options(names)}, got {str(config)[:200]!r}.")
        for name, value in config.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name == "max_attempts":
                if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 100:
                    raise InvalidConfig(f"{where}: budget.max_attempts must be an integer from 1 to 100, got {value!r}.")
            elif not is_number or not 0 < value <= 7 * 86400 * (1 if name != "max_total_seconds" else 1000):
                raise InvalidConfig(f"{where}: budget.{name} must be a number of seconds greater than 0 and at most a week, got {value!r}.")
        return cls(**config)

    def to_config(self) -> dict[str, Any]:
        """Return the values that differ from the defaults."""
        return {each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) != each.default}


@dataclass(frozen=True)
class ServerlessOptions:
    """The artifact store (see `open_store`) and the budget of a serverless endpoint."""

    store: str | None = None
    budget: Budget = Budget()

    @classmethod
    def from_config(cls, store: Any, budget: Any, where: str) -> ServerlessOptions:
        """Build from the values of ``store`` and ``budget``. Raise `InvalidConfig` for other forms."""
        if store is not None and not isinstance(store, str):
            raise InvalidConfig(f"{where}: store must be a text, got {type(store).__name__}.")
        checked = None if store is None else check_store(store, where)
        return cls(checked, Budget() if budget is None else Budget.from_config(budget, where))

    def to_config(self) -> dict[str, Any]:
        """Return the JSON form, without defaults."""
        budget = self.budget.to_config()
        return {**({} if self.store is None else {"store": self.store}), **({"budget": budget} if budget else {})}
