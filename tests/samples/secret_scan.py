"""Secrets that are planted in environments and settings, and a search for them in everything that processes leave behind."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

__all__ = ["HOMES", "PLANTED", "SessionScan", "find", "forms", "scan_folder"]

#: No secrets: values that occur nowhere else, with characters that encodings change.
PLANTED = {
    "HF_TOKEN": "hf_planted/hub+token=0815~4711",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDSTOREKEY0",
    "AWS_SECRET_ACCESS_KEY": "planted/store+secret=0815~4711",
    "COMFY_ORG_API_KEY": "planted/comfy+key=0815~4711",
    "PLANTED_DATABASE_PASSWORD": "planted/database+password=0815~4711",
    "PLANTED_SERVICE_SECRET": "planted/service+secret=0815~4711",
}
#: Files that contain secrets by design, each readable by its owner only.
HOMES = frozenset({"token", "signing_key", "secrets.yaml", "webhook_secret", "gcs-credentials.json"})
_CHUNK = 1 << 22
_MAX_FINDINGS = 200


def forms(secret: str) -> set[bytes]:
    """Return how a secret may be written: plain, escaped, percent-encoded, hexadecimal, and in base64 at any place of a longer text."""
    data = secret.encode()
    found = {data, quote(secret, safe="").encode(), quote_plus(secret).encode(), quote(secret).encode(), json.dumps(secret)[1:-1].encode()}
    found |= {data.hex().encode(), secret.encode("utf-16-le")}
    for shift in range(3):
        # the first and the last characters depend on what is beside the secret
        encoded = base64.b64encode(b"\0" * shift + data)
        inner = encoded[(4 if shift else 0) : len(encoded) - 4]
        found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_"), quote(inner.decode(), safe="").encode()}
    return found


def find(data: bytes, secrets: Mapping[str, str]) -> list[str]:
    """Return the names of the secrets that occur in ``data`` in any form."""
    return [name for name, secret in secrets.items() if any(form in data for form in forms(secret))]


def scan_folder(folder: Path, secrets: Mapping[str, str], homes: Iterable[str] = HOMES) -> tuple[list[str], int]:
    """Return ``PATH: NAME`` for each secret in the files below ``folder``, and in their names, and the number of files. Links are not followed."""
    wanted = {name: forms(secret) for name, secret in secrets.items()}
    longest = max(len(form) for found in wanted.values() for form in found)
    skipped, findings, count = frozenset(homes), [], 0
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if path.is_symlink() or not path.is_file() or name in skipped:
                continue
            count += 1
            present = {key for key, found in wanted.items() if any(form in os.fsencode(path.relative_to(folder)) for form in found)}
            try:
                with path.open("rb") as file:
                    rest = b""
                    while chunk := file.read(_CHUNK):
                        text = rest + chunk
                        present |= {key for key, found in wanted.items() if any(form in text for form in found)}
                        rest = text[-longest:]
            except OSError:
                continue
            findings += [f"{path}: {key}" for key in sorted(present)]
    return findings, count


class SessionScan:
    """A plugin of pytest that plants secrets for a whole run, and searches the reports of its tests and its temporary folders at the end."""

    def __init__(self) -> None:
        self.findings: list[str] = []
        self.files = 0
        os.environ.update(PLANTED)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Search what a test printed and how it failed."""
        text = "\n".join([report.longreprtext, *(text for _, text in report.sections)])
        self.findings += [f"{report.nodeid} ({report.when}): {name}" for name in find(text.encode("utf-8", "surrogatepass"), PLANTED)]

    @pytest.hookimpl(tryfirst=True)  # pytest may remove the folders after it
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Search the temporary folders; those of workers of xdist are below that of the controller."""
        if hasattr(session.config, "workerinput"):
            return
        folder: Path = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        found, self.files = scan_folder(folder, PLANTED)
        self.findings += found
        if self.findings:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print what was found."""
        terminalreporter.section("planted secrets")
        terminalreporter.write_line(f"searched {self.files} files and all reports for {len(PLANTED)} secrets: {len(self.findings)} found")
        for finding in self.findings[:_MAX_FINDINGS]:
            terminalreporter.write_line(f"  {finding}")
