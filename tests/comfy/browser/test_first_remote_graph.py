"""The steps of docs/comfyui.md, "Your first remote graph", on two new servers, by mouse and keyboard as described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samples.comfy import Servers
from samples.comfy_graphs import token_of
from samples.editor import Editor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def command(editor: Editor, name: str) -> None:
    """Choose an item of the menu Yggdrasill."""
    editor.page.get_by_test_id("topmenu-logo").or_(editor.page.locator(".comfy-menu-button-wrapper")).first.click()
    editor.page.get_by_role("menuitem", name="Yggdrasill").hover()
    editor.page.wait_for_timeout(300)
    editor.page.get_by_role("menuitem", name=name).click()


def answer(editor: Editor, question: str, text: str | None = None) -> None:
    """Enter a text into the dialog with the message ``question``; without a text, accept the default."""
    dialog = editor.page.get_by_role("dialog").filter(has_text=question)
    box = dialog.get_by_role("textbox")
    if text is not None:
        box.fill(text)
    box.press("Enter")


def choose(editor: Editor, node: int, name: str, choice: str, *, picture: bool = False) -> None:
    """Open one of the node's lists and click an item."""
    editor.wait_until(lambda: choice in editor.choices(node, name))
    editor.page.locator("[data-testid=widget-select-default-trigger]").and_(editor.page.get_by_label(name)).click()
    line = editor.page.get_by_role("option", name=choice)
    line.hover()
    if picture:
        editor.picture("choosing")
    line.click()


def test_the_steps_of_the_page_work_on_two_fresh_servers(browser: Any, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> None:
    forge, here = servers.launch(), servers.launch()
    for server in (forge, here):
        server.wait_until_ready()

    # on the machine that computes
    there = Editor(browser.new_page(), forge.url).open().empty()
    start = there.add("YggdrasillGraphInput", 60, 160, name="picture")
    turned = there.add("ImageInvert", 420, 160)
    end = there.add("YggdrasillGraphOutput", 740, 160, name="negative")
    there.page.evaluate("([a, b]) => app.graph.getNodeById(a).connect(0, app.graph.getNodeById(b), 0)", [start, turned])
    there.link(turned, 0, end, "value")
    command(there, "Serve this workflow")
    answer(there, "Name under which callers use", "negative")
    there.wait_until(lambda: any("Served as “negative”" in text for text in there.messages()))
    there.page.wait_for_timeout(300)
    there.picture("served")

    # on the machine where one works
    work = Editor(browser.new_page(), here.url).open().empty()
    command(work, "Add an endpoint")
    form = work.page.get_by_role("dialog", name="Add an endpoint")
    form.get_by_label("Pairing line or address").fill(f"{forge.url.removeprefix('http://')} {token_of(forge)}")
    form.get_by_label("Name").fill("forge")
    form.get_by_role("button", name="Add", exact=True).click()
    said = work.wait_until(work.messages)
    assert "It serves negative." in " ".join(said)
    secrets = here.base / "user" / "yggdrasill" / "secrets.yaml"
    assert token_of(forge) in secrets.read_text(encoding="utf-8")
    assert token_of(forge) not in (Path(secrets.parent) / "endpoints.yaml").read_text(encoding="utf-8")

    work.empty(vue=True)
    remote = work.add("YggdrasillRemoteGraph", 420, 160)
    choose(work, remote, "endpoint", "forge")
    choose(work, remote, "graph", "negative", picture=True)
    work.wait_until(lambda: work.outputs(remote) == [["negative", "IMAGE", 0]])
    image = work.add("EmptyImage", 60, 160, color=0xFF0000)
    preview = work.add("PreviewImage", 780, 160)
    work.link(image, 0, remote, "picture")
    work.link(remote, 0, preview, "images")
    work.run()
    work.wait_for_end()
    assert work.heard("execution_error") == []
    shown = work.wait_until(lambda: work.page.evaluate("(id) => app.nodeOutputs[id]?.images?.[0]", preview))
    assert colour(here.url, shown) == (0, 255, 255)
    for server in (forge, here):
        server.stop()


def colour(url: str, shown: dict[str, str]) -> tuple[int, ...]:
    """Return the color of a picture's first pixel."""
    from io import BytesIO
    from urllib.parse import urlencode
    from urllib.request import urlopen

    from PIL import Image

    with urlopen(f"{url}/view?{urlencode(shown)}", timeout=30) as answered:
        return tuple(Image.open(BytesIO(answered.read())).convert("RGB").getpixel((0, 0)))  # type: ignore[arg-type]
