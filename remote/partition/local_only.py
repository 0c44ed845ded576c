"""Which nodes of a part stay here whatever the registry says, and which output nodes pass a value on as it came."""

from __future__ import annotations

from yggdrasill.remote.partition.graph import Link, PromptGraph, Source
from yggdrasill.remote.partition.schemas import NodeSchema

__all__ = ["before_savers", "reason_to_stay"]

#: Loaders whose files are in this server's input or output folder, though no socket of theirs uploads one.
_READ_HERE = frozenset(
    "LoadLatent LoadImageDataSetFromFolder LoadImageTextDataSetFromFolder LoadVideoDataSetFromFolder LoadVideoTextDataSetFromFolder "
    "LoadTrainingDataset".split()
)
#: Output nodes whose first output is what came in by this input, the same object.
_PASS_THROUGH = {
    **dict.fromkeys("PreviewImage SaveAnimatedPNG SaveAnimatedWEBP SaveImage SaveImageAdvanced SaveWEBM".split(), "images"),
    **dict.fromkeys("PreviewAudio SaveAudio SaveAudioAdvanced SaveAudioMP3 SaveAudioOpus".split(), "audio"),
    "MaskPreview": "mask",
    "SaveLatent": "samples",
    "SaveSVGNode": "svg",
    "SaveText": "text",
    "SaveVideo": "video",
}
_OURS = "Yggdrasill"


def reason_to_stay(schema: NodeSchema, credentials: bool) -> str | None:
    """Why a node of this class is not partitioned; None if it may be."""
    if schema.class_type.startswith(_OURS):
        return "it belongs to this server's own graphs and endpoints"
    if schema.is_output_node:
        return "it is an output node, and its files and previews belong here"
    if schema.uploads or schema.class_type in _READ_HERE:
        return "it loads a file of this server"
    if schema.needs_credentials and not credentials:
        return "it needs the user's account, which does not travel"
    return None


def before_savers(graph: PromptGraph, link: Link) -> Source:
    """Where the value on ``link`` comes from if the output nodes that only pass it on are skipped.

    A node is skipped only if it runs anyway and if nothing but that value is linked to it, so that lists keep their length.
    """
    node_id, slot = link.source, link.slot
    while slot == 0 and node_id in graph.targets:
        name = _PASS_THROUGH.get(graph.class_of(node_id))
        links = graph.links[node_id]
        if name is None or len(links) != 1 or links[0].input != name:
            break
        schema = graph.schema(node_id)
        declared = schema.input(name) if schema is not None else None
        if schema is None or declared is None or declared.type != schema.output_type(0):
            break
        node_id, slot = links[0].source, links[0].slot
    return node_id, slot
