"""The endpoint: jobs, the service that answers for graphs, its routes, and the host that runs them without ComfyUI."""

__all__: list[str] = []
