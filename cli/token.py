"""``yggdrasill token``: the tokens of an endpoint's data folder: that of its owner, and those of other principals."""

from __future__ import annotations

import argparse
import datetime
import os
import re
import sys
import time
from pathlib import Path

from yggdrasill.cli.console import Console, table
from yggdrasill.cli.serve import DEFAULT_DATA_DIR
from yggdrasill.errors import InvalidArgument

__all__ = ["add", "main"]

_SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir", default=str(DEFAULT_DATA_DIR), metavar="DIR", help="the data folder of the endpoint (default: %(default)s)"
    )
    actions.add_parser("show", parents=[common], help="print the owner's token; create it if there is none")
    actions.add_parser("list", parents=[common], help="list the principals, with their roles and bounds; no token is printed")
    adding = actions.add_parser("add", parents=[common], help="add a principal and print its token, once")
    adding.add_argument("name", metavar="NAME", help="1 to 64 of a-z, 0-9, '.', '_' and '-'")
    adding.add_argument(
        "--roles",
        required=True,
        metavar="ROLES",
        help="read, run, deploy, work, admin, separated by commas; each includes read, and admin all",
    )
    adding.add_argument("--quota", metavar="SIZE", help="bytes of artifacts that it may write, such as 20GB (default: no bound)")
    adding.add_argument("--jobs", type=int, metavar="N", help="unfinished jobs that it may have (default: no bound)")
    adding.add_argument("--expires", metavar="TIME", help="when the token expires, such as 30d or 12h from now (default: never)")
    rotating = actions.add_parser("rotate", parents=[common], help="replace a token; a running endpoint refuses the old one at once")
    rotating.add_argument("name", nargs="?", metavar="NAME", help="the principal (default: the owner)")
    rotating.add_argument("--expires", metavar="TIME", help="when the new token of NAME expires, such as 30d (default: as before)")
    revoking = actions.add_parser("revoke", parents=[common], help="revoke the token of a principal, and cancel its unfinished jobs")
    revoking.add_argument("name", metavar="NAME", help="the principal; the owner's token is replaced with 'rotate'")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Run the action and return the exit code."""
    data_dir = Path(arguments.data_dir).expanduser()
    if arguments.action == "list":
        _list(data_dir, console)
    elif arguments.action == "show" or (arguments.action == "rotate" and arguments.name in (None, "owner")):
        _owner(arguments, data_dir, console)
    else:
        _principal(arguments, data_dir, console)
    return 0


def _owner(arguments: argparse.Namespace, data_dir: Path, console: Console) -> None:
    """Print or replace the owner's token."""
    from yggdrasill.server_ext.auth import TOKEN_VARIABLE, resolve_token, rotate_token

    if arguments.action == "rotate":
        if arguments.expires is not None:
            raise InvalidArgument("The owner's token does not expire. Add a principal with the role admin and --expires.")
        token = rotate_token(data_dir)
        _audit(data_dir, "token_rotate", "owner")
    else:
        token = resolve_token(data_dir, environment={})
    console.say(token)
    if os.environ.get(TOKEN_VARIABLE):
        print(f"{TOKEN_VARIABLE} is set; an endpoint that is started with it uses that token and not this one", file=sys.stderr)
    console.result({"token": token, "token_file": str(data_dir / "token")})


def _principal(arguments: argparse.Namespace, data_dir: Path, console: Console) -> None:
    """Add, rotate or revoke the token of a principal."""
    from yggdrasill.server_ext.principals import OWNER_NAME, PrincipalFile

    file, name = PrincipalFile(data_dir), arguments.name
    if arguments.action == "revoke":
        if name == OWNER_NAME:
            raise InvalidArgument("The owner's token cannot be revoked. Replace it with: yggdrasill token rotate")
        file.revoke(name)
        _audit(data_dir, "token_revoke", name)
        console.say(f"revoked {name}; a running endpoint refuses the token at once and cancels its unfinished jobs")
        console.result({"name": name, **file.read()[name].to_dict()})
        return
    expires = None if arguments.expires is None else time.time() + _duration(arguments.expires)
    if arguments.action == "add":
        roles = [role.strip() for role in arguments.roles.split(",") if role.strip()]
        quota = None if arguments.quota is None else _size(arguments.quota)
        token = file.add(name, roles, quota_bytes=quota, max_jobs=arguments.jobs, expires=expires)
    else:
        token = file.rotate(name, expires=expires)
    _audit(data_dir, f"token_{arguments.action}", name)
    console.say(token)
    if not console.json_only:
        print(f"this is the token of {name!r}; it is not stored and cannot be printed again", file=sys.stderr)
    console.result({"name": name, "token": token, **file.read()[name].to_dict()})


def _list(data_dir: Path, console: Console) -> None:
    from yggdrasill.server_ext.principals import OWNER, PrincipalFile

    principals = {OWNER.name: OWNER, **PrincipalFile(data_dir).read()}
    rows = []
    for name, principal in principals.items():
        roles = ",".join(principal.to_dict()["roles"])
        state = "revoked" if principal.revoked is not None else "valid" if principal.is_valid else "expired"
        quota = "-" if principal.quota_bytes is None else str(principal.quota_bytes)
        jobs = "-" if principal.max_jobs is None else str(principal.max_jobs)
        rows.append([name, roles, quota, jobs, _date(principal.expires), state])
    console.say(table(["name", "roles", "quota", "jobs", "expires", "state"], rows))
    console.result({"principals": {name: principal.to_dict() for name, principal in principals.items()}})


def _audit(data_dir: Path, action: str, name: str) -> None:
    """Record a change of tokens in the audit log of the endpoint."""
    from yggdrasill.server_ext.logs import append_entry

    try:
        append_entry(data_dir, "owner", action, name)
    except OSError as error:
        print(f"the audit log cannot be written: {error}", file=sys.stderr)


def _size(text: str) -> int:
    """Return the bytes of a size such as ``20GB``, ``512MiB`` or ``1000``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.strip().upper())
    if found is None or found[2] not in _SIZES:
        raise InvalidArgument(f"{text[:40]!r} is not a size. Write it as 20GB, 512MiB or a number of bytes.")
    return int(float(found[1]) * _SIZES[found[2]])


def _duration(text: str) -> float:
    """Return the seconds of a duration such as ``30d``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip().lower())
    if found is None or not 0 < float(found[1]) < 10**6:
        raise InvalidArgument(f"{text[:40]!r} is not a duration. Write it as 30d, 12h, 45m, 90s or 2w.")
    return float(found[1]) * _SECONDS[found[2]]


def _date(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M")
