"""``yggdrasill gateway``: one address for many endpoints, with durable jobs."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from yggdrasill.cli.console import Console
from yggdrasill.cli.endpoints import DEFAULT_FILE
from yggdrasill.errors import InvalidArgument

__all__ = ["add", "main"]

DEFAULT_DATA_DIR = Path("~/.yggdrasill/gateway")
_GIB = 1 << 30


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s, this machine only)")
    parser.add_argument("--port", type=int, default=8080, help="the port, or 0 for any free one (default: %(default)s)")
    parser.add_argument("--endpoints", metavar="FILE", help=f"the endpoints.yaml (default: {DEFAULT_FILE}, if it exists)")
    parser.add_argument(
        "--data-dir", default=str(DEFAULT_DATA_DIR), metavar="DIR", help="the folder for jobs, tokens and secrets (default: %(default)s)"
    )
    parser.add_argument(
        "--database",
        metavar="URL",
        help="postgresql://USER@HOST/NAME, which several gateways may share, or sqlite:///FILE (default: YGGDRASILL_DATABASE, or a file in the "
        "data folder). Put a password into YGGDRASILL_DATABASE: other users of this machine see arguments",
    )
    parser.add_argument(
        "--pool", action="append", default=[], metavar="NAME", help="an endpoint of RunPod's dialect that workers serve; may be repeated"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a host name under which the gateway is reached; may be repeated"
    )
    parser.add_argument(
        "--trusted-proxy", action="append", default=[], metavar="ADDRESS", help="an address or network of a reverse proxy whose X-Forwarded headers are believed; may be repeated (default: none)"
    )  # fmt: skip
    parser.add_argument("--tls-cert", metavar="FILE", help="serve https with this certificate (PEM, with its chain); needs --tls-key")
    parser.add_argument("--tls-key", metavar="FILE", help="the key of the certificate (PEM, without a password)")
    parser.add_argument("--max-queue", type=int, default=10_000, metavar="N", help="number of jobs that may wait (default: %(default)s)")
    parser.add_argument("--max-attempts", type=int, default=3, metavar="N", help="how often a job may begin to run (default: %(default)s)")
    parser.add_argument(
        "--ahead", type=int, default=1, metavar="N", help="number of jobs that an endpoint gets beyond its slots (default: %(default)s)"
    )
    parser.add_argument(
        "--retry-reserve", type=float, default=20.0, metavar="N",
        help="number of jobs that may run again after their endpoint was lost; one more every 10 minutes (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--assets",
        metavar="FOLDER",
        help="the folder of files of jobs and clients; gateways on one database share it (default: in the data folder)",
    )
    parser.add_argument("--asset-quota", type=float, default=50.0, metavar="GIB", help="GiB of files that are kept (default: %(default)g)")
    parser.add_argument(
        "--asset-days", type=float, default=7.0, metavar="DAYS", help="days for which a file is kept (default: %(default)g)"
    )
    parser.add_argument("--max-asset", type=float, default=10.0, metavar="GIB", help="GiB that one file may have (default: %(default)g)")
    parser.add_argument(
        "--allow-private-webhooks",
        action="store_true",
        help="send webhooks also to addresses inside this network, which clients could probe so",
    )


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Serve until interrupted; return the exit code."""
    if find_spec("sqlalchemy") is None:
        raise InvalidArgument('The gateway needs SQLAlchemy. Install it with: pip install "yggdrasill[gateway]"')
    from yggdrasill.gateway.app import serve

    def ready(url: str, token_file: Path | None) -> None:
        console.say(f"gateway at {url}")
        console.say(f"its token is in {token_file}" if token_file is not None else "its token is the configured one")
        console.result({"url": url, "token_file": None if token_file is None else str(token_file)})

    serve(
        host=arguments.host,
        port=arguments.port,
        data_dir=Path(arguments.data_dir),
        database=arguments.database,
        endpoints=Path(arguments.endpoints or DEFAULT_FILE),
        may_lack=arguments.endpoints is None,
        pools=arguments.pool,
        allow_hosts=arguments.allow_host,
        trusted_proxies=arguments.trusted_proxy,
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        max_queue=arguments.max_queue,
        max_attempts=arguments.max_attempts,
        ahead=arguments.ahead,
        retry_reserve=arguments.retry_reserve,
        assets=Path(arguments.assets) if arguments.assets else None,
        asset_quota=int(arguments.asset_quota * _GIB),
        asset_lifetime=arguments.asset_days * 86400.0,
        max_asset=int(arguments.max_asset * _GIB),
        private_webhooks=arguments.allow_private_webhooks,
        ready=ready,
    )
    return 0
