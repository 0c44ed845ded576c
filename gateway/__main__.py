"""``python -m yggdrasill.gateway '{"port": 0, ...}'``: serve a gateway with settings given as JSON."""

from __future__ import annotations

import sys

from yggdrasill.gateway.app import serve
from yggdrasill.server_ext.__main__ import main

if __name__ == "__main__":
    main(sys.argv[1:], serve)
