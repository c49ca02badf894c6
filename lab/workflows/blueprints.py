"""The blueprints: one person, two people, and the repair of small faces, each in one box."""

from __future__ import annotations

from typing import Any

from lab.workflows.blueprint import BOX, Blueprint
from lab.workflows.layout import AFTER, Prompt, node
from lab.workflows.magicface_workflows import REGIONS, halves
from lab.workflows.models import SD15
from lab.workflows.notes import files

NEGATIVE = "blurry, low quality, deformed"
PARTS = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2]}
WORD = "Name the person in the prompt by the same word."
#: any two people: each takes one occurrence of it in the prompt, the left one the first
BOTH = "person"
WORDS = (
    f"Call both of them *{BOTH}* in the prompt, the left one first. Other words, such as woman and man, are set in the "
    "two references inside."
)
SEED = "The picture changes with every run: set the seed inside."


def checkpoint(slot: int) -> dict[str, Any]:
    """The checkpoint that the box's input number ``slot`` names."""
    return node("CheckpointLoaderSimple", ckpt_name=[BOX, slot])


def drawn(prompt: int, references: str, size: tuple[int, int]) -> Prompt:
    """MagicFace and a sampler; ``prompt`` is the number of the box's input with the prompt."""
    return {
        "apply": node("LikenessMagicFaceApply", **PARTS, references=[references, 0], prompt=[BOX, prompt], alpha=0.4),
        "negative": node("CLIPTextEncode", "Negative", [320, 110], clip=["checkpoint", 1], text=NEGATIVE),
        "latent": node("EmptyLatentImage", width=size[0], height=size[1], batch_size=1),
        "sampler": node(
            "KSampler", model=["apply", 0], positive=["apply", 1], negative=["negative", 0], latent_image=["latent", 0],
            steps=50, cfg=7.5, sampler_name="ddim", scheduler="ddim_uniform", denoise=1.0, seed=1,
            **{AFTER: "randomize"},
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
    }  # fmt: skip


def reference(photo: int, word: int | str, **more: Any) -> dict[str, Any]:
    """A MagicFace Reference on the box's input number ``photo``; ``word`` is another's number, or the word itself."""
    concept = word if isinstance(word, str) else [BOX, word]
    return node("LikenessMagicFaceReference", image=[BOX, photo], concept=concept, weight=3.0, **more)


def described(prompt: Prompt, inputs: dict[str, Any], outputs: dict[str, list[Any]], what: str, how: str) -> Blueprint:
    """A blueprint whose note is its description, how to use it, and its files."""
    return Blueprint(prompt, inputs, outputs, what, "\n\n".join((what, how, files({"file": {"inputs": inputs}}))))


def portrait() -> Blueprint:
    """One person."""
    prompt = {"checkpoint": checkpoint(3), "reference": reference(0, 1), **drawn(2, "reference", (512, 512))}
    inputs = {"photo": None, "word": "woman", "prompt": "a photo of a woman in a red coat, in the snow",
              "checkpoint": SD15}  # fmt: skip
    what = "A new picture of the person of one photo, on any SD1.5 or SDXL checkpoint. Nothing is trained."
    return described(prompt, inputs, {"picture": ["decode", 0]}, what, f"{WORD} {SEED}")


def two_people() -> Blueprint:
    """Two people, the left and the right half of the picture."""
    left, right = REGIONS["left"], REGIONS["right"]
    prompt = {
        "checkpoint": checkpoint(3),
        **halves(512),
        "left_person": reference(0, BOTH, region=left),
        "right_person": reference(1, BOTH, region=right, references=["left_person", 0]),
        **drawn(2, "right_person", (768, 512)),
    }
    inputs = {
        "left photo": None, "right photo": None,
        "prompt": f"a photo of a {BOTH} in a red coat and a {BOTH} in a green suit, on the beach", "checkpoint": SD15,
    }  # fmt: skip
    what = "A new picture of two people from a photo of each, one in the left half and one in the right."
    return described(prompt, inputs, {"picture": ["decode", 0]}, what, f"{WORDS} {SEED}")


def repair() -> Blueprint:
    """The small faces of a picture."""
    prompt = {
        "checkpoint": checkpoint(3),
        "reference": reference(1, 2),
        "repair": node("LikenessDiirFaceRepair", image=[BOX, 0], **PARTS, references=["reference", 0]),
    }
    inputs = {"picture": None, "photo of the person": None, "word": "woman", "checkpoint": SD15}
    what = "Small faces of a picture drawn again in detail, as the person of a photo. All else stays as it is."
    how = "Several people: chain a *MagicFace Reference* for each inside. The table of faces is inside as well."
    outputs = {"picture": ["repair", 0], "faces before and after": ["repair", 2]}
    return described(prompt, inputs, outputs, what, how)


#: name, with the words people search for -> what makes it
BLUEPRINTS = {
    "Portrait of a person from one photo (face, identity)": portrait,
    "Two people in their places (faces, identities)": two_people,
    "Repair faces (face detailer, restore small faces)": repair,
}
