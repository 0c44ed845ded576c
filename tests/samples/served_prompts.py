"""Workflows that tests serve, of ComfyUI's own node classes and of those of the stand-in (`samples.prompts`)."""

from __future__ import annotations

from samples.comfy_graphs import Prompt, graph_input, graph_output, node

__all__ = ["DOUBLE", "EARLY_AND_LATE", "GATE", "paint", "soften"]

DOUBLE: Prompt = {"1": graph_input("x"), "2": node("StandInDouble", value=("1", 0)), "3": graph_output("y", ("2", 0))}
#: Gives ``x`` when the door opens.
GATE: Prompt = {
    "1": graph_input("path"),
    "2": graph_input("x"),
    "3": node("StandInGate", path=("1", 0), value=("2", 0)),
    "4": graph_output("y", ("3", 0)),
}
#: ``early`` is there at once, ``late`` when the door opens.
EARLY_AND_LATE: Prompt = {
    "1": graph_input("path"),
    "2": graph_input("x"),
    "3": node("StandInDouble", value=("2", 0)),
    "4": graph_output("early", ("3", 0)),
    "5": node("StandInGate", path=("1", 0), value=("2", 0)),
    "6": graph_output("late", ("5", 0)),
}


def soften(name: str = "image") -> Prompt:
    """One input of that name and two outputs."""
    return {
        "1": graph_input(name, "IMAGE"),
        "2": node("ImageBlur", image=("1", 0), blur_radius=3, sigma=1.0),
        "3": graph_output("soft", ("2", 0), "IMAGE"),
        "4": node("ImageInvert", image=("1", 0)),
        "5": graph_output("inverted", ("4", 0), "IMAGE"),
    }


def paint(steps: int = 8) -> Prompt:
    """It samples with the small model of the tests: it takes a while, and shows how far it is."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="tiny.ckpt"),
        "2": graph_input("prompt", "STRING"),
        "3": node("CLIPTextEncode", clip=("1", 1), text=("2", 0)),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": node(
            "KSampler", model=("1", 0), positive=("3", 0), negative=("3", 0), latent_image=("4", 0), seed=7, steps=steps, cfg=2.0,
            sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "6": node("VAEDecode", samples=("5", 0), vae=("1", 2)),
        "7": graph_output("image", ("6", 0), "IMAGE"),
    }  # fmt: skip
