"""The DIIR examples of ``workflows/``: on the miniature, behind SD1.5 and SDXL, and on a photograph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lab.workflows import samples
from lab.workflows.layout import Prompt, node
from lab.workflows.magicface_workflows import LEFT, MAN, PERSON, Example, Made, Source, miniature_sources
from lab.workflows.models import SD15, SDXL, UPSCALER
from lab.workflows.notes import Note

RIGHT = Source("man", "The man", "person", PERSON, "a photo of a man")
WOMAN = replace(LEFT, region=None)
PARTS = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2]}
NAME = "likeness/diir"


def repaired(image: list[Any], prompt: str, **more: Any) -> Prompt:
    """DIIR Face Repair behind a picture, and what it shows."""
    return {
        "repair": node("LikenessDiirFaceRepair", None, [340, 0], image=image, **PARTS, prompt=prompt, **more),
        "save": node("SaveImage", "Repaired", [320, 360], images=["repair", 0], filename_prefix=NAME),
        "before": node("PreviewImage", "Before", [320, 360], images=image),
        "crops": node("PreviewImage", "Faces, before and after", [420, 300], images=["repair", 2]),
    }


def drawn(prompt: str, size: tuple[int, int], seed: int, steps: int, cfg: float, negative: str) -> Prompt:
    """A plain text-to-image graph: what anybody's workflow ends with."""
    return {
        "positive": node("CLIPTextEncode", "Prompt of the picture", [320, 130], clip=["checkpoint", 1], text=prompt),
        "negative": node("CLIPTextEncode", "Negative", [320, 110], clip=["checkpoint", 1], text=negative),
        "latent": node("EmptyLatentImage", width=size[0], height=size[1], batch_size=1),
        "sampler": node(
            "KSampler", model=["checkpoint", 0], positive=["positive", 0], negative=["negative", 0],
            latent_image=["latent", 0], seed=seed, steps=steps, cfg=cfg, sampler_name="dpmpp_2m", scheduler="karras",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
    }  # fmt: skip


def miniature(sources: tuple[Source, ...], prompt: str, face: str, seed: int) -> Callable[[], Prompt]:
    """A picture of the miniature whose small faces become those of the references."""

    def make() -> Prompt:
        from likeness.miniature.models import picture_size

        side, last = picture_size(), [f"reference{len(sources) - 1}", 0]
        return {
            "checkpoint": node("LikenessMiniatureLoader"),
            **miniature_sources(Example(sources, prompt, prompt, "")),
            **drawn(prompt, (side, side), seed, 20, 5.0, ""),
            **repaired(["decode", 0], face, references=last),
        }

    return make


def photo_reference(checkpoint: dict[str, Any], negative: str = "blurry, low quality, deformed") -> Prompt:
    """A checkpoint and the user's picture of the person."""
    return {
        "checkpoint": checkpoint,
        "picture": node("LoadImage", "The person (paint the mask)", [280, 330], image=samples.MAN),
        "reference": node(
            "LikenessMagicFaceReference",
            image=["picture", 0], concept="man", weight=3.0, mask=["picture", 1],
        ),
        "face_negative": node("CLIPTextEncode", "Negative of the face", [320, 110], clip=["checkpoint", 1],
                              text=negative),
    }  # fmt: skip


def after_text_to_image(name: str, size: tuple[int, int]) -> Callable[[], Prompt]:
    """Behind txt2img on a user's checkpoint."""
    face = {"references": ["reference", 0], "negative": ["face_negative", 0]}
    return lambda: {
        **photo_reference(node("CheckpointLoaderSimple", ckpt_name=name)),
        **drawn("a photo of a man in a red coat, full body, walking in the snow", size, 1, 30, 7.0, "blurry, deformed"),
        **repaired(["decode", 0], "a photo of {person}, portrait, winter light", **face),
    }


def photograph() -> Prompt:
    """A photograph repaired, then enlarged by the host's own nodes."""
    graph = {
        **photo_reference(node("CheckpointLoaderSimple", ckpt_name=SD15)),
        "photograph": node("LoadImage", "The photograph", [280, 330], image=samples.GROUP),
        **repaired(
            ["photograph", 0],
            "a photo of {person}, portrait",
            references=["reference", 0],
            negative=["face_negative", 0],
        ),
        "upscaler": node("UpscaleModelLoader", "Restore and upscale model", model_name=UPSCALER),
        "upscale": node("ImageUpscaleWithModel", upscale_model=["upscaler", 0], image=["repair", 0]),
    }
    graph["save"]["inputs"]["images"] = ["upscale", 0]
    return graph


RUN = "nothing to choose: the small model and the drawn references come with the pack. Press *Run*."
OWN = (
    "choose your checkpoint and a picture of the person; paint the mask over the person with *Open in MaskEditor*. "
    "Then press *Run*."
)
#: Compare Images is not in the graphs: ComfyUI 0.8 has no such node and would refuse them.
TABLE = (
    "The table under *DIIR Face Repair* lists the faces after a run; tick those you want. Newer ComfyUIs have a node "
    "*Compare Images*: connect both pictures to it to see them under a slider."
)

WORKFLOWS: dict[str, Made] = {
    "Demo - DIIR, a small face repaired": (
        miniature(
            (MAN,),
            "a picture of a man wearing a red sweater, full body, in the snow",
            "a picture of {person}, portrait",
            3,
        ),
        Note(
            "The sampler draws a figure whose face is a few pixels wide. *DIIR Face Repair* draws that face again as "
            "the person of the reference. Every other pixel stays as it was.",
            RUN,
            "the picture before and repaired, and the face alone before and after.",
        ),
    ),
    "Demo - DIIR, faces of two people": (
        miniature(
            (WOMAN, RIGHT),
            "a picture of a woman wearing a red sweater and a man wearing a green suit, on the beach",
            "a picture of {person}, portrait",
            11,
        ),
        Note(
            "Several people, each with their own face: one *MagicFace Reference* a person.",
            RUN,
            "each face repaired as its own person.",
            "A face gets its person by likeness where it can be told, else from left to right; *people* in *DIIR "
            "Options* overrules.",
        ),
    ),
    "DIIR - small faces, SD1.5": (
        after_text_to_image(SD15, (512, 768)),
        Note(
            "A full-body picture whose face is too small for the model, and that face drawn again. The last node goes "
            "behind any workflow of yours.",
            OWN,
            f"the picture before and repaired. {TABLE}",
        ),
    ),
    "DIIR - small faces, SDXL": (
        after_text_to_image(SDXL, (832, 1216)),
        Note(
            "As for SD1.5, with faces drawn again at 1024 x 1024.",
            OWN,
            f"the picture before and repaired. {TABLE}",
            "IP-Adapter, PuLID or a LoRA on the model act in the face as well; identities that travel in the "
            "conditioning (InstantID, PhotoMaker) go into *positive*.",
        ),
    ),
    "DIIR - small faces of a photograph": (
        photograph,
        Note(
            "The small faces of a photograph first, with the identity of another picture of the person; then the "
            "whole picture by an upscale or restoration model.",
            OWN,
            f"the photograph repaired and enlarged. {TABLE}",
        ),
    ),
}
