"""Jobs of an endpoint: rows, states and events, submission and staging, execution, retention."""

__all__: list[str] = []
