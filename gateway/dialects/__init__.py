"""The dialects of the gateway: each module translates the HTTP routes of one kind of client into calls of the service."""

__all__: list[str] = []
