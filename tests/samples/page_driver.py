"""The status page of a gateway in a real browser."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from samples.editor import PICTURES
from samples.gateways import GATEWAY_TOKEN, GatewayProcess
from samples.http_client import until

__all__ = ["FAR", "StatusPage"]

FAR = 90.0
"""Seconds after which a change on the page counts as missing. Only a failing test waits for so long."""


@dataclass(eq=False)
class StatusPage:
    """A page of ``gateway``. ``problems`` are the errors that the browser reported."""

    page: Any = field(repr=False)
    gateway: GatewayProcess
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(1000 * FAR)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._printed)

    def _printed(self, message: Any) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    def open(self, token: str | None = GATEWAY_TOKEN) -> StatusPage:
        """Open the page, and enter the token unless it is None."""
        self.page.goto(self.gateway.url + "/")
        if token is not None:
            self.enter(token)
            until(lambda: self.state == "live", FAR)
            # the browser reports the request without a token
            self.problems.clear()
        return self

    def enter(self, token: str) -> None:
        """Enter a token in the dialog."""
        self.page.get_by_label("Token", exact=True).fill(token)
        self.page.keyboard.press("Enter")

    @property
    def state(self) -> str:
        """The state of the connection, as the page reports it."""
        return str(self.page.locator("#state-text").inner_text())

    def row(self, name: str) -> Any:
        """Return the line of the job with this name."""
        return self.page.locator("li.job").filter(has=self.page.get_by_role("button", name=name, exact=True)).first

    def status(self, name: str) -> str:
        """Return the state that the line of a job shows, or an empty text if it is not shown."""
        row = self.row(name)
        return str(row.locator(".status").inner_text()) if row.count() else ""

    def wait_for_status(self, name: str, status: str) -> Any:
        """Wait until the line of a job shows ``status``, and return it."""
        until(lambda: self.status(name) == status, FAR)
        return self.row(name)

    def choose(self, status: str) -> None:
        """Filter the list by state."""
        self.page.locator("#filters").get_by_role("button", name=status).click()

    def messages(self) -> str:
        """Return the text of the messages on the page."""
        return str(self.page.locator("#messages").inner_text())

    def background(self) -> str:
        """Return the color behind the page."""
        return str(self.page.evaluate("() => getComputedStyle(document.body).backgroundColor"))

    def picture(self, name: str, *, whole: bool = False) -> None:
        """Save a screenshot as ``docs/pictures/gateway-NAME.png`` if KEEP_PICTURES is set, with 256 colors to keep it small."""
        data = self.page.screenshot(full_page=whole)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        assert len(image.getcolors(1 << 24) or ()) > 20, "the screenshot is empty"
        if os.environ.get("KEEP_PICTURES"):
            image.quantize(256).save(PICTURES / f"gateway-{name}.png", optimize=True)
