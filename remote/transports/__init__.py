"""Ways to reach an endpoint: HTTP, and memory for tests."""

from yggdrasill.remote.transports.http import HttpTransport
from yggdrasill.remote.transports.memory import MemoryTransport
from yggdrasill.remote.transports.transport import Request, Response, Transport

__all__ = ["HttpTransport", "MemoryTransport", "Request", "Response", "Transport"]
