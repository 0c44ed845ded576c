"""Workflows that tests deploy, with ComfyUI's own node classes and with those of the fake ComfyUI (`samples.fake_comfyui`)."""

from __future__ import annotations

from samples.comfy_graphs import Prompt, graph_input, graph_output, node

__all__ = ["DOUBLE", "EARLY_AND_LATE", "GATE", "paint", "soften"]

DOUBLE: Prompt = {"1": graph_input("x"), "2": node("FakeDouble", value=("1", 0)), "3": graph_output("y", ("2", 0))}
#: Returns ``x`` when the gate file exists.
GATE: Prompt = {
    "1": graph_input("path"),
    "2": graph_input("x"),
    "3": node("FakeGate", path=("1", 0), value=("2", 0)),
    "4": graph_output("y", ("3", 0)),
}
#: ``early`` is available immediately, ``late`` when the gate file exists.
EARLY_AND_LATE: Prompt = {
    "1": graph_input("path"),
    "2": graph_input("x"),
    "3": node("FakeDouble", value=("2", 0)),
    "4": graph_output("early", ("3", 0)),
    "5": node("FakeGate", path=("1", 0), value=("2", 0)),
    "6": graph_output("late", ("5", 0)),
}


def soften(name: str = "image") -> Prompt:
    """Return a workflow with one input of that name and two outputs."""
    return {
        "1": graph_input(name, "IMAGE"),
        "2": node("ImageBlur", image=("1", 0), blur_radius=3, sigma=1.0),
        "3": graph_output("soft", ("2", 0), "IMAGE"),
        "4": node("ImageInvert", image=("1", 0)),
        "5": graph_output("inverted", ("4", 0), "IMAGE"),
    }


def paint(steps: int = 8) -> Prompt:
    """Return a workflow that samples with the small test model: it takes time and reports progress."""
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
