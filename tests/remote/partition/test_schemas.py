"""Node classes as described by /object_info."""

from __future__ import annotations

import pytest

from samples.comfy_schemas import ASK_AGAIN, comfy_schemas
from yggdrasill.errors import InvalidConfig
from yggdrasill.remote.partition import InputSchema, NodeSchema, NodeSchemas


def test_every_class_of_comfyui_is_read() -> None:
    schemas = comfy_schemas()
    assert len(schemas) == 886
    assert schemas["KSampler"].outputs == ("LATENT",)
    assert {name for name in schemas if schemas[name].asks_again} == set(ASK_AGAIN)


def test_output_nodes_lists_and_uploads_are_told() -> None:
    schemas = comfy_schemas()
    assert schemas["SaveImage"].is_output_node
    assert schemas["RebatchImages"].input_is_list
    assert schemas["RebatchImages"].is_list_output(0)
    assert not schemas["KSampler"].is_list_output(0)
    uploads = "Load3D Load3DAdvanced LoadAudio LoadImage LoadImageMask LoadImageOutput LoadVideo Painter WebcamCapture"
    assert sorted(name for name in schemas if schemas[name].uploads) == uploads.split()
    assert schemas["ClaudeNode"].needs_credentials


def test_sockets_that_come_with_a_choice_or_grow_are_found_by_their_full_names() -> None:
    schemas = comfy_schemas()
    match = schemas["ResizeImageMaskNode"].input("resize_type.match")
    assert match == InputSchema("IMAGE,MASK")
    grown = schemas["CreateList"].input("inputs.input3")
    assert grown is not None
    assert grown.match == schemas["CreateList"].output_match[0]
    assert schemas["KSampler"].input("undeclared") is None


def test_lazy_and_raw_sockets_are_told() -> None:
    switch = comfy_schemas()["ComfySwitchNode"]
    assert {name: socket.lazy for name, socket in switch.inputs.items()} == {"switch": False, "on_false": True, "on_true": True}
    info = {"Loop": {"input": {"required": {"flow": ["FLOW_CONTROL", {"rawLink": True}]}}, "output": []}}
    assert NodeSchemas.from_object_info(info)["Loop"].inputs["flow"].raw


def test_a_class_may_be_of_the_old_kind() -> None:
    info = {
        "Old": {
            "input": {"required": {"mode": [["a", "b"]], "image": ["IMAGE"]}, "hidden": {"id": "UNIQUE_ID"}},
            "output": ["IMAGE", ["a"]],
        }
    }
    schema = NodeSchemas.from_object_info(info)["Old"]
    assert [socket.type for socket in schema.inputs.values()] == ["COMBO", "IMAGE"]
    assert schema.outputs == ("IMAGE", "COMBO")
    assert schema.output_type(7) == "*"


def test_later_schemas_win() -> None:
    first, second = NodeSchemas([NodeSchema("A"), NodeSchema("B")]), NodeSchemas([NodeSchema("B", outputs=("IMAGE",))])
    both = first | second
    assert sorted(both) == ["A", "B"]
    assert both["B"].outputs == ("IMAGE",)


@pytest.mark.parametrize(
    "entry", [None, {}, {"input": 3, "output": []}, {"input": {}, "output": 4}, {"input": {"required": {"x": []}}, "output": []}]
)
def test_a_malformed_entry_is_refused_by_name(entry: object) -> None:
    with pytest.raises(InvalidConfig, match="class 'Odd'"):
        NodeSchemas.from_object_info({"Odd": entry})
