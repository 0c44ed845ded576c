"""Node packs with the habits of published ones, placed in every way: the results are the local ones, or the prompt is refused before it runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from samples.comfy_graphs import Caller, node
from samples.page_view import Shown, on_endpoints, show

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")

Prompt = dict[str, Any]
_SALTS = itertools.count()


def _text(salt: str) -> Prompt:
    return node("HabitAdd", text=f"say {salt}", more="!")


def cases(salt: str) -> dict[str, Prompt]:
    """Return a prompt for each habit; ``salt`` keeps it out of caches. The node ``9`` shows the result."""
    return {
        "a file of a combo": {
            "1": node("HabitLoadListed", video="clip.txt"),
            "2": node("HabitAdd", text=("1", 0), more=salt),
            **_shown("2"),
        },
        "an annotated file": {
            "1": node("HabitLoadListed", video="clip.txt [output]"),
            "2": node("HabitAdd", text=("1", 0), more=salt),
            **_shown("2"),
        },
        "a folder": {"1": node("HabitLoadFolder", folder="frames"), "2": node("HabitAdd", text=("1", 0), more=salt), **_shown("2")},
        "a folder by a text node": {
            "1": node("HabitAdd", text="frames", more=""),
            "2": node("HabitLoadFolder", folder=("1", 0)),
            "3": node("HabitAdd", text=("2", 0), more=salt),
            **_shown("3"),
        },
        "a folder that only the caller has": {
            "1": node("HabitLoadFolder", folder="only-here"),
            "2": node("HabitAdd", text=("1", 0), more=salt),
            **_shown("2"),
        },
        "a saver": {
            "1": _text(salt),
            "2": node("HabitSavePicture", text=("1", 0), filename_prefix=f"kept-{salt}"),
            "3": node("HabitAdd", text=("2", 0), more="?"),
            **_shown("3"),
        },
        "hidden inputs": {
            "1": _text(salt),
            "2": node("HabitAdd", text=("1", 0), more="?"),
            "3": node("HabitReadWidget", text=("2", 0), node="1"),
            **_shown("3"),
        },
        "a pipe of models": {
            "1": _text(salt),
            "2": node("HabitMakeModel"),
            "3": node("HabitMakePipe", model=("2", 0), text="pipe"),
            "4": node("HabitReadPipe", pipe=("3", 0), text=("1", 0)),
            **_shown("4"),
        },
        "objects of a pack": {
            "1": _text(salt),
            "2": node("HabitFind", text=("1", 0)),
            "3": node("HabitDraw", segs=("2", 0), text=("1", 0)),
            "4": node("HabitDraw", segs=("2", 0), text=("3", 0)),
            **_shown("4"),
        },
        "objects that differ each time": {
            "1": _text(salt),
            "2": node("HabitThrow", text=("1", 0)),
            "3": node("HabitReadDice", dice=("2", 0), number=("2", 1)),
            **_shown("3"),
        },
        "plain values of a pack": {
            "1": _text(salt),
            "2": node("HabitPlain", text=("1", 0)),
            "3": node("HabitReadPlain", plain=("2", 0)),
            **_shown("3"),
        },
        "a lazy sound": {
            "1": node("HabitLoadSound", length=4),
            "2": node("HabitHear", audio=("1", 0)),
            "3": node("HabitAdd", text=("2", 0), more=salt),
            **_shown("3"),
        },
        "shared state": {
            "1": _text(salt),
            "2": node("HabitRemember", text=("1", 0), key="k"),
            "3": node("HabitRecall", text=("2", 0), key="k"),
            **_shown("3"),
        },
        "a counter": {
            "1": _text(salt),
            "2": node("HabitCount", text=("1", 0)),
            "3": node("HabitAdd", text=("2", 0), more="?"),
            **_shown("3"),
        },
        "the order of inputs": {
            "1": _text(salt),
            "2": {"class_type": "HabitOrder", "inputs": {"value10": ["1", 0], "value2": ["1", 0], "value1": "x"}},
            **_shown("2"),
        },
        "a choice of files": {
            "1": node("HabitChooseModel", number=3),
            "2": _text(salt),
            "3": node("HabitAdd", text=("2", 0), more="?"),
            **_shown("1", "3"),
        },
    }


def _shown(*sources: str) -> Prompt:
    return {f"9{source}": node("TestShow", value=(source, 0)) for source in sources}


def placements(prompt: Prompt) -> Iterator[list[list[str]]]:
    """Yield the parts of every placement: all nodes, each node alone, each pair of halves."""
    inside = [name for name in prompt if not name.startswith("9")]
    yield [inside]
    yield from ([[name]] for name in inside)
    yield from ([inside[:cut], inside[cut:]] for cut in range(1, len(inside)))


NAMES = list(cases(""))


@pytest.fixture(scope="module")
def files(pair: tuple[Caller, Caller]) -> None:
    """Files of the same names with other contents on both servers, and a folder that only the first one has."""
    for name, caller in zip("ab", pair, strict=True):
        base = caller.server.base
        (base / "input" / "frames").mkdir(exist_ok=True)
        for file in ("input/clip.txt", "output/clip.txt", "input/frames/1.txt", "input/frames/2.txt"):
            (base / file).write_text(f"{file} of {name}", encoding="utf-8")
        (base / "models" / "checkpoints").mkdir(exist_ok=True)
        (base / "models" / "checkpoints" / f"of-{name}.safetensors").write_bytes(b"")
    folder = pair[0].server.base / "input" / "only-here"
    folder.mkdir(exist_ok=True)
    (folder / "1.txt").write_text("only here", encoding="utf-8")


def run(a: Caller, name: str, parts: list[list[str]]) -> tuple[Shown, str]:
    """Run the prompt of a case, and return what the page saw and the salt of the run."""
    salt = f"salt{next(_SALTS)}x"
    prompt = cases(salt)[name]
    workflow = {"nodes": [{"id": 1, "type": "HabitAdd", "title": "greeting"}], "links": [], "version": 0.4}
    places = {f"part-{salt}-{number}": ("b", nodes) for number, nodes in enumerate(parts)}
    extra = {**(on_endpoints(**places) if parts else {}), "extra_pnginfo": {"workflow": workflow}}
    return show(a.server, prompt, extra), salt


def outcome(shown: Shown, salt: str) -> str:
    return json.dumps(shown.outputs, sort_keys=True).replace(salt, "SALT")


@pytest.mark.parametrize("name", NAMES)
def test_a_habit_gives_the_local_result_or_a_refusal(a: Caller, b: Caller, files: None, name: str) -> None:
    here, here_salt = run(a, name, [])
    assert here.entry["status"]["status_str"] == "success", here.entry["status"]["messages"]
    placed = refused = 0
    for parts in placements(cases("")[name]):
        shown, salt = run(a, name, parts)
        if shown.status == 400:
            errors = json.dumps(shown.answer)
            assert "No node of part" in errors, errors
            refused += 1
            continue
        assert shown.status == 200, shown.answer
        assert shown.entry["status"]["status_str"] == "success", (parts, shown.entry["status"]["messages"])
        assert outcome(shown, salt) == outcome(here, here_salt), parts
        placed += bool(b.jobs(graph_id=f"part-{salt}-0"))
    assert placed


def test_a_saver_saves_where_the_user_is_with_the_user_s_prompt(a: Caller, b: Caller, files: None) -> None:
    shown, salt = run(a, "a saver", [["1", "2", "3"]])
    assert shown.status == 200
    text, prompt, extra = json.loads((a.server.base / "output" / f"kept-{salt}.txt").read_text(encoding="utf-8"))
    assert text == f"say {salt}!"
    assert prompt.keys() == {"1", "2", "3", "93"}
    assert extra["workflow"]["nodes"][0]["title"] == "greeting"
    assert not (b.server.base / "output" / f"kept-{salt}.txt").exists()


def test_hidden_inputs_of_another_workflow_are_not_returned_from_a_cache(a: Caller, b: Caller) -> None:
    salt = f"salt{next(_SALTS)}y"
    prompt = {
        "1": _text(salt),
        "2": node("HabitReadWidget", text=("1", 0), node="1"),
        "3": node("HabitAdd", text=("2", 0), more="a"),
        **_shown("3"),
    }
    found = []
    for title, more in (("one", "a"), ("two", "b")):
        prompt["3"] = node("HabitAdd", text=("2", 0), more=more)
        extra = {
            **on_endpoints(cached=("b", ["2", "3"])),
            "extra_pnginfo": {"workflow": {"nodes": [{"id": 1, "title": title}], "links": []}},
        }
        found.append(json.dumps(show(a.server, prompt, extra).outputs))
    assert "one" in found[0]
    assert "two" in found[1]


def lora(server: Any, name: str, content: str) -> None:
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")


@pytest.mark.parametrize(
    "inputs",
    [
        {"text": "plain", "lora_1": {"on": True, "lora": "NAME.safetensors", "strength": 1.0}},
        {"text": "a tree <lora:NAME:0.8>"},
        {"text": "NAME.safetensors"},
    ],
    ids=["a widget with fields", "a word of a text", "a text"],
)
def test_a_model_that_only_the_caller_has_is_refused_before_anything_runs(a: Caller, b: Caller, inputs: dict[str, Any]) -> None:
    name = f"ink{next(_SALTS)}"
    filled = json.loads(json.dumps(inputs).replace("NAME", name))
    prompt = {"1": {"class_type": "HabitApply", "inputs": filled}, **_shown("1")}
    lora(a.server, f"{name}.safetensors", "ink of a")
    refused = show(a.server, prompt, on_endpoints(lora=("b", ["1"])))
    assert refused.status == 400
    assert f"lacks model file '{name}.safetensors'" in json.dumps(refused.answer)
    lora(b.server, f"{name}.safetensors", "ink of b")
    other = show(a.server, prompt, on_endpoints(lora=("b", ["1"])))
    assert other.status == 400
    assert "has another file of that name" in json.dumps(other.answer)
    assert other.answer["node_errors"].keys() == {"1"}
    lora(b.server, f"{name}.safetensors", "ink of a")
    placed, here = show(a.server, prompt, on_endpoints(lora=("b", ["1"]))), show(a.server, prompt)
    assert placed.outputs == here.outputs
    assert b.jobs(graph_id="lora", limit=1)[0]["status"] == "COMPLETED"


def test_a_choice_that_the_endpoint_does_not_offer_is_refused_before_anything_runs(a: Caller, b: Caller) -> None:
    style = f"style{next(_SALTS)}"
    for caller, names in ((a, ("common", style)), (b, ("common",))):
        for name in names:
            (caller.server.base / "models" / "habit_styles" / name).mkdir(parents=True, exist_ok=True)
    prompt = {"1": node("HabitPick", style=style), "2": node("HabitAdd", text=("1", 0), more="b"), **_shown("2")}
    refused = show(a.server, prompt, on_endpoints(choice=("b", ["1", "2"])))
    assert refused.status == 400
    assert f"lacks choice 'style: {style}'" in json.dumps(refused.answer)
    assert not b.jobs(graph_id="choice")
    (b.server.base / "models" / "habit_styles" / style).mkdir()
    placed = show(a.server, prompt, on_endpoints(choice=("b", ["1", "2"])))
    assert placed.outputs == {"92": {"text": [f"'{style}b'"]}}
    assert b.jobs(graph_id="choice")


def test_an_input_that_comfyui_refuses_is_refused_in_a_part_too(a: Caller, b: Caller) -> None:
    prompt = {"1": node("HabitReadPath", where="/nowhere/at/all.txt"), "2": node("HabitAdd", text=("1", 0), more="b"), **_shown("2")}
    refused, here = show(a.server, prompt, on_endpoints(late=("b", ["1", "2"]))), show(a.server, prompt)
    assert (refused.status, here.status) == (400, 400)
    assert refused.answer["node_errors"]["1"]["errors"] == here.answer["node_errors"]["1"]["errors"]
    assert not b.jobs(graph_id="late")


def test_a_choice_that_only_the_endpoint_has_is_made_there(a: Caller, b: Caller) -> None:
    style = f"style{next(_SALTS)}"
    for caller, name in ((a, "common"), (b, style)):
        (caller.server.base / "models" / "habit_styles" / name).mkdir(parents=True, exist_ok=True)
    prompt = {"1": node("HabitPick", style=style), "2": node("HabitAdd", text=("1", 0), more="b"), **_shown("2")}
    assert show(a.server, prompt).status == 400
    assert show(a.server, prompt, on_endpoints(there=("b", ["1", "2"]))).outputs == {"92": {"text": [f"'{style}b'"]}}
