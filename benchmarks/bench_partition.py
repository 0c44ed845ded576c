"""Partitioning a prompt of 500 nodes, for which a user waits, compared with the same prompt through JSON."""

from __future__ import annotations

import json
import random
from functools import partial
from typing import Any

from benchmarks.figures import Figure
from benchmarks.timing import Act, interleave, median, ratios, seconds
from samples.comfy_schemas import comfy_schemas
from yggdrasill.remote.partition import NodeSchemas, Part, partition_prompt, restore_prompt

__all__ = ["drawings", "run"]

ROUNDS = 40
PARTITION_SECONDS = 0.020
UNPLACED_SECONDS = 0.001
DRAWINGS = 50
JSON = "the prompt through json.dumps and json.loads"


def run() -> list[Figure]:
    """Return for each placement the share of its limit and the ratio to JSON."""
    prompt, schemas = drawings(DRAWINGS), comfy_schemas()
    placed = _parts(prompt)
    titles = {name: f"{what}, {_calls(prompt, parts, schemas)}" for name, (what, parts) in placed.items()}
    acts: dict[str, Act] = {name: partial(partition_prompt, prompt, parts, schemas) for name, (_, parts) in placed.items()}
    acts["json"] = lambda: json.loads(json.dumps(prompt))
    taken = interleave("partition", acts, ROUNDS, dict.fromkeys(acts, 3))
    figures = []
    for name, title in titles.items():
        limit = PARTITION_SECONDS if placed[name][1] else UNPLACED_SECONDS
        parts = {"ours": seconds(median(taken[name])), "JSON": seconds(median(taken["json"]))}
        shares = [each / limit for each in taken[name]]
        figures.append(Figure.of(title, f"the limit of {seconds(limit)}", shares, at_most=1.0, parts=parts))
        figures.append(Figure.of(title, JSON, ratios(taken[name], taken["json"]), parts=parts))
    return figures


def drawings(count: int) -> dict[str, Any]:
    """Return ``count`` text-to-image groups of ten nodes, each starting from the picture that the previous group saved."""
    prompt: dict[str, Any] = {}
    latent: list[Any] | None = None
    for place in range(count):
        ids = {name: f"{place}:{name}" for name in "3 4 5 6 7 8 9 10 11 12".split()}
        one = {
            "4": ("CheckpointLoaderSimple", {"ckpt_name": "sd.safetensors"}),
            "5": ("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 1}),
            "6": ("CLIPTextEncode", {"text": "a tree on a hill, in the evening", "clip": [ids["4"], 1]}),
            "7": ("CLIPTextEncode", {"text": "people", "clip": [ids["4"], 1]}),
            "3": (
                "KSampler",
                {
                    "seed": place,
                    "steps": 20,
                    "cfg": 8.0,
                    "sampler_name": "euler",
                    "scheduler": "normal",
                    "denoise": 0.8,
                    "model": [ids["4"], 0],
                    "positive": [ids["6"], 0],
                    "negative": [ids["7"], 0],
                    "latent_image": latent or [ids["5"], 0],
                },
            ),
            "8": ("VAEDecode", {"samples": [ids["3"], 0], "vae": [ids["4"], 2]}),
            "9": ("SaveImage", {"images": [ids["8"], 0], "filename_prefix": "tree"}),
            "10": ("ImageInvert", {"image": [ids["9"], 0]}),
            "11": ("VAEEncode", {"pixels": [ids["10"], 0], "vae": [ids["4"], 2]}),
            "12": ("PreviewImage", {"images": [ids["10"], 0]}),
        }
        prompt |= {ids[name]: {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}} for name, (kind, inputs) in one.items()}
        latent = [ids["11"], 0]
    return prompt


def _parts(prompt: dict[str, Any]) -> dict[str, tuple[str, list[Part]]]:
    """Return the placements: name -> (description, parts)."""
    dice = random.Random(1)
    whole = [Part("half", frozenset(node for node in prompt if int(node.split(":")[0]) < DRAWINGS // 2))]
    torn = [Part("torn", frozenset(node for node in prompt if dice.random() < 0.5))]
    turns = [Part(f"turn {turn}", frozenset(node for node in prompt if int(node.split(":")[0]) % 5 == turn)) for turn in range(5)]
    return {
        "half": ("500 nodes: the first half placed", whole),
        "torn": ("500 nodes: every other node placed", torn),
        "turns": ("500 nodes: five parts that alternate along the chain", turns),
        "none": ("500 nodes: nothing placed", []),
    }


def _calls(prompt: dict[str, Any], parts: list[Part], schemas: NodeSchemas) -> str:
    """Return the number of calls after checking that together they are the prompt."""
    partition = partition_prompt(prompt, parts, schemas)
    plugged = restore_prompt(partition)
    if any(plugged[node]["inputs"] != prompt[node]["inputs"] for node in plugged):
        raise AssertionError("the partitioned prompt differs from the original")
    return f"{len(partition.calls)} call{'' if len(partition.calls) == 1 else 's'}"
