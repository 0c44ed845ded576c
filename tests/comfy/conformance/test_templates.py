"""ComfyUI's official templates, made into prompts by the real editor: what the names in them mean, and what is carved out of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from samples.comfy import Installation
from samples.conformance.templates import Template, template_files
from yggdrasill.remote.carve.titles import GROUP, SUBGRAPH, NamedPart, named_parts

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(1200)]


def test_the_editor_makes_a_prompt_of_every_template(templates: list[Template], installation: Installation) -> None:
    assert [template.name for template in templates] == [path.stem for path in template_files(installation)]
    assert not [template.name for template in templates if not template.prompt]


def test_a_group_holds_what_the_editor_says_it_holds(templates: list[Template], subtests: pytest.Subtests) -> None:
    compared = 0
    for template in templates:
        with subtests.test(template.name):
            found = named_parts(template.workflow, template.prompt)
            ours = Counter((part.path[-1], part.nodes) for part in found if part.kind == GROUP)
            assert ours == Counter(_groups_of_the_editor(template, found))
            compared += ours.total()
    assert compared > 1000


def _groups_of_the_editor(template: Template, found: list[NamedPart]) -> Iterator[tuple[str, frozenset[str]]]:
    """The groups of the root and of each instance of a subgraph that the prompt has nodes of."""
    for group in template.groups:
        instances = [part for part in found if part.kind == SUBGRAPH and part.source == (group["graph"],) and part.nodes]
        for prefix in [f"{part.node_id}:" for part in instances] or [""]:
            heads = tuple(f"{prefix}{node}:" for node in group["nodes"])
            if instances or group["graph"] == template.workflow.get("id"):
                yield group["title"], frozenset(node for node in template.prompt if f"{node}:".startswith(heads))
