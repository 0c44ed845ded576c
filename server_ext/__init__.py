"""The endpoint: deployments, jobs, HTTP routes, and the headless host."""

__all__: list[str] = []
