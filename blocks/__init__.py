"""The block library: one folder per family, reached through the registry by type.

`BUILT_IN` maps each type to its module; a module is imported when its type is first requested.
"""

from __future__ import annotations

__all__ = ["BUILT_IN"]

#: Block type -> ``module:Class``.
BUILT_IN: dict[str, str] = {
    "backbone/identity": "yggdrasill.blocks.identity.roles:BackboneIdentity",
    "solver/identity": "yggdrasill.blocks.identity.roles:SolverIdentity",
    "codec/identity": "yggdrasill.blocks.identity.roles:CodecIdentity",
    "conditioner/identity": "yggdrasill.blocks.identity.roles:ConditionerIdentity",
    "tokenizer/identity": "yggdrasill.blocks.identity.roles:TokenizerIdentity",
    "adapter/identity": "yggdrasill.blocks.identity.roles:AdapterIdentity",
    "guidance/identity": "yggdrasill.blocks.identity.roles:GuidanceIdentity",
    "procedural/heightfield": "yggdrasill.blocks.procedural.heightfield:Heightfield",
    "procedural/erosion": "yggdrasill.blocks.procedural.erosion:Erosion",
    "procedural/climate": "yggdrasill.blocks.procedural.climate:Climate",
    "procedural/rivers": "yggdrasill.blocks.procedural.rivers:Rivers",
    "procedural/shade": "yggdrasill.blocks.procedural.shade:Shade",
    "procedural/atlas": "yggdrasill.blocks.procedural.atlas:Atlas",
    "procedural/measure": "yggdrasill.blocks.procedural.measure:Measure",
    "text/architect": "yggdrasill.blocks.text.architect:Architect",
    "text/describe": "yggdrasill.blocks.text.describe:Describe",
    "text/narrate": "yggdrasill.blocks.text.narrate:Narrate",
    "text/chronicle": "yggdrasill.blocks.text.chronicle:Chronicle",
    "text/develop": "yggdrasill.blocks.text.develop:Develop",
    "text/template": "yggdrasill.blocks.text.template:Template",
    "text/join": "yggdrasill.blocks.text.join:Join",
    "image/resize": "yggdrasill.blocks.image.resize:Resize",
    "image/blend": "yggdrasill.blocks.image.blend:Blend",
    "image/grid": "yggdrasill.blocks.image.grid:Grid",
    "image/adjust": "yggdrasill.blocks.image.adjust:Adjust",
}
