"""The protocol of endpoints, for both sides: versions, paths, job states, JSON models and the HTTP status of each error."""

__all__: list[str] = []
