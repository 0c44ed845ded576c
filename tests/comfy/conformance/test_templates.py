"""ComfyUI's official templates, converted to prompts by the real editor: the meaning of names in them, and their partitions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from samples.comfy import ROOT, Installation, Server
from samples.conformance.lab import versions_of
from samples.conformance.partitions import Made, attempts, check_refusal, reason_of
from samples.conformance.template_report import TemplateReport
from samples.conformance.templates import MARKER, Template, opened, template_files
from samples.editor import Editor
from yggdrasill.errors import InvalidConfig, PartitionError
from yggdrasill.remote.comfy_ports import OUTPUT_NODE
from yggdrasill.remote.partition import NodeSchemas, Partition
from yggdrasill.remote.partition.named_parts import GROUP, SUBGRAPH, NamedPart, named_parts

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(1200)]


def test_the_editor_converts_every_template_to_a_prompt(templates: list[Template], installation: Installation) -> None:
    assert [template.name for template in templates] == [path.stem for path in template_files(installation)]
    assert not [template.name for template in templates if not template.prompt]


def test_the_stored_workflow_converts_to_the_stored_prompt(validating: Server, browser: Any) -> None:
    """The tests in tests/remote/partition use the output of this editor."""
    drawn = json.loads((ROOT / "tests" / "remote" / "partition" / "drawn.json").read_text(encoding="utf-8"))
    made = opened(Editor(browser.new_page(), validating.url).open().empty(), "drawn", drawn["workflow"])
    assert made.prompt == drawn["prompt"]
    assert {group["title"]: group["nodes"] for group in made.groups} == dict(drawn["groups"])


def test_a_group_contains_the_same_nodes_as_in_the_editor(
    templates: list[Template], template_report: TemplateReport, subtests: pytest.Subtests
) -> None:
    compared = 0
    for template in templates:
        with subtests.test(template.name):
            found = named_parts(template.workflow, template.prompt)
            ours = Counter((part.path[-1], part.nodes) for part in found if part.kind == GROUP)
            assert ours == Counter(_groups_of_the_editor(template, found))
            compared += ours.total()
    assert compared > 1000
    template_report.counts["groups"] = compared


def _groups_of_the_editor(template: Template, found: list[NamedPart]) -> Iterator[tuple[str, frozenset[str]]]:
    """Return the groups of the root and of each subgraph instance that has nodes in the prompt."""
    for group in template.groups:
        instances = [part for part in found if part.kind == SUBGRAPH and part.source == (group["graph"],) and part.nodes]
        for prefix in [f"{part.node_id}:" for part in instances] or [""]:
            heads = tuple(f"{prefix}{node}:" for node in group["nodes"])
            if instances or group["graph"] == template.workflow.get("id"):
                yield group["title"], frozenset(node for node in template.prompt if f"{node}:".startswith(heads))


def test_parts_of_a_template_compute_the_same_and_are_valid_at_an_endpoint(
    templates: list[Template], validating: Server, template_report: TemplateReport, subtests: pytest.Subtests
) -> None:
    made = Made(NodeSchemas.from_object_info(validating.get("/object_info")))
    template_report.versions = {
        **versions_of(validating),
        "templates": validating.get("/system_stats")["system"]["installed_templates_version"],
    }
    for template in templates:
        with subtests.test(template.name):
            template_report.counts["templates"] += 1
            if not all(node.get("class_type") in made.schemas for node in template.prompt.values()):
                template_report.counts["foreign"] += 1
                continue
            template_report.counts["nodes"] += len(template.prompt)
            _check_valid(template, list(_partitioned(template, made, template_report)), validating, made.schemas, template_report)
    assert template_report.counts["templates"] - template_report.counts["foreign"] > 490


@pytest.mark.parametrize(
    "node, error",
    [
        ({"class_type": "ImageInvert", "inputs": {"image": ["1", 1]}}, "return_type_mismatch"),
        ({"class_type": "ImageInvert", "inputs": {}}, "required_input_missing"),
        ({"class_type": "NoSuchNode", "inputs": {}}, "missing_node_type"),
        ({"class_type": "ImageBlur", "inputs": {"image": ["1", 0], "blur_radius": 3, "sigma": 99.0}}, "value_bigger_than_max"),
        ({"class_type": "ImageScaleBy", "inputs": {"image": ["1", 0], "upscale_method": "none", "scale_by": 1.0}}, "value_not_in_list"),
    ],
)
def test_the_validating_server_reports_errors(validating: Server, node: dict[str, Any], error: str) -> None:
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "absent.safetensors"}},
        "2": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "3": node,
        "4": {"class_type": OUTPUT_NODE, "inputs": {"value": ["3", 0], "name": "y", "type": "IMAGE"}},
        "5": {"class_type": OUTPUT_NODE, "inputs": {"value": ["1", 0], "name": "m", "type": "*"}},
    }
    if node["inputs"].get("image") == ["1", 0]:
        node["inputs"]["image"] = ["2", 0]
    (found,) = validating.post("/tests/validate", [prompt])
    wrong = [each for each in found if not _is_absent(each)]
    assert [each[1] for each in wrong] == [error]
    assert error == "missing_node_type" or len(found) == 2


def _partitioned(template: Template, made: Made, report: TemplateReport) -> Iterator[Partition]:
    """Yield every partition of a template."""
    local = made.run(template.prompt)
    for attempt in attempts(template):
        report.tried[attempt.kind] += 1
        error: PartitionError | InvalidConfig | None = attempt.refusal
        try:
            partition = made.check(template, local, attempt.parts) if error is None else None
        except PartitionError as raised:
            check_refusal(raised, template.prompt, attempt.parts, made.schemas)
            error, partition = raised, None
        if error is not None or partition is None:
            assert error is not None
            report.refused[f"{attempt.kind}: {reason_of(error)}"] += 1
            continue
        report.partitioned[attempt.kind] += 1
        report.partitioned[f"{attempt.kind}, calls"] += len(partition.calls)
        yield partition


def _check_valid(template: Template, partitions: list[Partition], server: Server, schemas: NodeSchemas, report: TemplateReport) -> None:
    """Assert that a server accepts the calls and the remaining prompt, except for missing models and errors of the template itself.

    No call loads an upload, because the file is local.
    """
    calls = [call.prompt for partition in partitions for call in partition.calls]
    prompts = [template.prompt, *calls, *(partition.prompt for partition in partitions)]
    own, *answers = server.post("/tests/validate", prompts, timeout=120)
    uploaders = {node for node, facts in template.prompt.items() if schemas[facts["class_type"]].uploads}
    known = {tuple(error) for error in own if not _is_absent(error) and error[0] not in uploaders}
    report.counts["invalid"] += bool(known)
    for number, answer in enumerate(answers):
        here = number >= len(calls)
        wrong = [error for error in answer if not _is_absent(error) and tuple(error) not in known]
        assert not [error for error in wrong if not (here and error[0] in uploaders)]
        report.counts["left, validated" if here else "validated"] += 1
        report.counts["absent"] += bool(answer) and not here


def _is_absent(error: list[Any]) -> bool:
    """Return whether an error is about a model that is missing in the folder of an input."""
    return error[1] == "value_not_in_list" and MARKER in error[2]
