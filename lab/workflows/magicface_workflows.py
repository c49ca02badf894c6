"""The MagicFace examples of ``workflows/``: on a user's SD1.5 checkpoint, and those the miniature can show on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lab.workflows import samples
from lab.workflows.layout import Prompt, node
from lab.workflows.models import SD15
from lab.workflows.notes import Note


@dataclass(frozen=True)
class Source:
    """Where one concept comes from.

    Attributes:
        concept: its word. title: what the picture shows. mask: output of the drawn person that is its mask.
        drawn: the Miniature Sample node's inputs, none where there is no demo. photo: of :mod:`.samples`.
        weight, drawn_weight: of the reference with a user's checkpoint, and on the miniature.
        prompt: of the reference's own pass with a user's checkpoint (the miniature's samples bring their caption).
        region: which of :data:`REGIONS` in the new picture is its own, if any.
    """

    concept: str
    title: str
    mask: str
    drawn: Mapping[str, Any]
    prompt: str
    photo: str = samples.MAN
    weight: float = 3.0
    drawn_weight: float = 1.0
    region: str | None = None


@dataclass(frozen=True)
class Example:
    """One example: its concepts, and what to draw of them with the miniature (empty: no demo) and with SD1.5."""

    sources: tuple[Source, ...]
    miniature_prompt: str
    prompt: str
    text: str
    seed: int = 1


PERSON = {
    "identity": 8, "held_out": True, "shot": "portrait", "scene": "studio", "style": "flat", "garment": "shirt",
    "garment_colour": "white", "accessory": "none", "accessory_colour": "red", "expression": "none", "layout": 0,
    "size": 256,
}  # fmt: skip
#: of a reference whose *prompt* is linked: the Vue renderer then shows that input though it is an advanced one
PROMPTED = [280, 290]
MASK_OUTPUTS = {"person": 1, "face": 2, "accessory": 3}
CAPTION = 4

MAN = Source("man", "The person", "person", PERSON, "a photo of a man")
SCARF = Source(
    "scarf",
    "The scarf",
    "accessory",
    {**PERSON, "identity": 12, "accessory": "scarf", "accessory_colour": "orange", "layout": 3},
    "a photo of a scarf",
    samples.SCARF,
    weight=2.0,
)
TEXTURE = Source(
    "sweater",
    "The texture",
    "",
    {},
    "a close-up photo of knitted wool",
    samples.KNIT,
    weight=2.0,
)
LEFT = Source(
    "woman", "The woman", "person", {**PERSON, "identity": 20, "garment": "dress"}, "a photo of a woman", samples.WOMAN,
    region="left",
)
RIGHT = Source("man", "The man", "person", PERSON, "a photo of a man", region="right")
DRAWN = Source("man", "A drawn person", "", {}, "a drawing of a man")

EXAMPLES = {
    "one person": Example(
        (MAN,),
        "a picture of a man wearing a red sweater and a hat, portrait, in the snow",
        "a photo of a man wearing a red sweater and a hat, portrait, in the snow",
        "The person of the reference, somewhere else and in other clothes.",
        seed=3,
    ),
    "person and scarf": Example(
        (MAN, SCARF),
        "a picture of a man wearing a black hoodie and a scarf, portrait, in the jungle",
        "a photo of a man wearing a black hoodie and a scarf, portrait, in the jungle",
        "A person and a garment from two pictures. Each concept is a *MagicFace Reference*; they are chained, and "
        "each must be named in the prompt. The preview shows which part of the picture each one was given.",
        seed=6,
    ),
    "two people": Example(
        (LEFT, RIGHT),
        "a picture of a woman wearing a red sweater and a man wearing a green suit, on the beach",
        "a photo of a woman wearing a red sweater and a man wearing a green suit, on the beach",
        "Two people are easily mixed up. Here each reference has a *region*: the woman has the left half of the new "
        "picture, the man the right. Any mask will do, painted or made.",
        seed=11,
    ),
    "texture of a material": Example(
        (TEXTURE,),
        "",
        "a photo of a teddy bear wearing a sweater, in a room",
        "The reference is a material. Its concept is the thing in the new picture that is to be made of it.",
        seed=7,
    ),
    "drawing to any style": Example(
        (DRAWN,),
        "",
        "a watercolor painting of a man wearing a green suit and glasses, portrait, in a meadow",
        "Training-free, so the reference may be a drawing and the new picture in another style.",
        seed=4,
    ),
}


def miniature_sources(example: Example) -> Prompt:
    """Drawn reference pictures with exact masks and captions, chained."""
    nodes: Prompt = {}
    for i, source in enumerate(example.sources):
        nodes[f"picture{i}"] = node("LikenessMiniatureSample", source.title, **source.drawn)
        nodes[f"reference{i}"] = reference(source, i, [f"picture{i}", MASK_OUTPUTS[source.mask]], source.drawn_weight)
        nodes[f"reference{i}"]["inputs"]["prompt"] = [f"picture{i}", CAPTION]
        nodes[f"reference{i}"]["_meta"]["size"] = PROMPTED
        nodes[f"shown{i}"] = node("PreviewImage", source.title, [220, 240], images=[f"picture{i}", 0])
    return nodes


def photo_sources(example: Example) -> Prompt:
    """The user's pictures, with masks painted in the front end, chained."""
    nodes: Prompt = {}
    for i, source in enumerate(example.sources):
        nodes[f"picture{i}"] = node("LoadImage", f"{source.title} (paint its mask)", [280, 330], image=source.photo)
        nodes[f"reference{i}"] = reference(source, i, [f"picture{i}", 1], source.weight)
        nodes[f"reference{i}"]["inputs"]["prompt"] = source.prompt
    return nodes


#: Regions by name: the output of a node of :func:`halves`.
REGIONS = {"left": ["left", 0], "right": ["right", 0]}


def halves(side: int) -> Prompt:
    """Masks of the left and the right half."""
    return {
        "nothing": node("SolidMask", "Nothing", value=0.0, width=side, height=side),
        "half": node("SolidMask", "Half as wide", value=1.0, width=side // 2, height=side),
        "left": node(
            "MaskComposite", "The left half", destination=["nothing", 0], source=["half", 0], x=0, y=0, operation="add"
        ),
        "right": node("InvertMask", "The right half", mask=["left", 0]),
    }


def reference(source: Source, index: int, mask: list[Any], weight: float) -> dict[str, Any]:
    """The Reference node of one concept, behind that of the concept before."""
    chained: dict[str, Any] = {"references": [f"reference{index - 1}", 0]} if index else {}
    if source.region:
        chained["region"] = REGIONS[source.region]
    return node(
        "LikenessMagicFaceReference",
        image=[f"picture{index}", 0], concept=source.concept, weight=weight, mask=mask, **chained,
    )  # fmt: skip


def graph(
    example: Example,
    checkpoint: dict[str, Any],
    sources: Prompt,
    prompt: str,
    size: int,
    steps: int,
    scale: float,
    negative: str,
) -> Prompt:
    """The example's graph: references, MagicFace, its sampler, and the same sampler without it."""
    sampling = {"seed": example.seed, "steps": steps, "cfg": scale, "sampler_name": "ddim", "scheduler": "ddim_uniform"}
    rest = {**sampling, "denoise": 1.0, "negative": ["negative", 0], "latent_image": ["latent", 0]}
    last = f"reference{len(example.sources) - 1}"
    parts = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2]}
    applied = node(
        "LikenessMagicFaceApply",
        **parts, references=[last, 0], prompt=["prompt", 0], positive=["positive", 0], alpha=0.4,
    )  # fmt: skip
    name = "likeness/magicface"
    return {
        "checkpoint": checkpoint,
        **(halves(size) if any(source.region for source in example.sources) else {}),
        **sources,
        "prompt": node("PrimitiveStringMultiline", "Prompt", [320, 140], value=prompt),
        "positive": node("CLIPTextEncode", "Positive", [320, 110], clip=["checkpoint", 1], text=["prompt", 0]),
        "apply": applied,
        "negative": node("CLIPTextEncode", "Negative", [320, 110], clip=["checkpoint", 1], text=negative),
        "latent": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "sampler": node("KSampler", "KSampler (MagicFace)", model=["apply", 0], positive=["apply", 1], **rest),
        "plain": node("KSampler", "KSampler (without)", model=["checkpoint", 0], positive=["positive", 0], **rest),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "decode_plain": node("VAEDecode", samples=["plain", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", "With MagicFace", [320, 360], images=["decode", 0], filename_prefix=name),
        "save_plain": node("PreviewImage", "Without", [320, 360], images=["decode_plain", 0]),
        "preview": node(
            "LikenessMagicFacePreview",
            record=["apply", 2], samples=["sampler", 0], image=["decode", 0], columns=6,
        ),
        "correspondence": node("PreviewImage", "Where it looked", [400, 320], images=["preview", 1]),
        "points": node("PreviewImage", "What one point saw", [400, 320], images=["preview", 2]),
    }  # fmt: skip


def miniature(example: Example) -> Callable[[], Prompt]:
    """The example on the miniature, at the size its weights were trained on: nothing to download."""

    def make() -> Prompt:
        from likeness.miniature.models import picture_size

        loader, side = node("LikenessMiniatureLoader"), picture_size()
        return graph(example, loader, miniature_sources(example), example.miniature_prompt, side, 20, 5.0, "")

    return make


def checkpoint(example: Example) -> Callable[[], Prompt]:
    """The example on a user's SD1.5 checkpoint."""
    loader = node("CheckpointLoaderSimple", ckpt_name=SD15)
    negative = "blurry, low quality, deformed"
    return lambda: graph(example, loader, photo_sources(example), example.prompt, 512, 50, 7.5, negative)


DEMO = "nothing to choose: the small model and the drawn references come with the pack. Press *Run*."
OWN = (
    "choose an SD1.5 checkpoint (SD2.x and SDXL work as well, at their own picture size) and a picture for each *Load "
    "Image*; paint the concept with *Open in MaskEditor*, or unplug the mask to use the whole picture. Then write a "
    "prompt that names each concept in the words of its reference."
)
EXPECT = "two pictures of one seed, with MagicFace and without, and below them where it looked in the references."
MORE = "Too weak: raise *weight* of the reference. The picture falls apart: lower it."


def note(example: Example, *, drawn: bool) -> Note:
    """The note of an example's graph."""
    return Note(example.text, DEMO if drawn else OWN, EXPECT, "" if drawn else MORE)


Made = tuple[Callable[[], Prompt], Note]
WORKFLOWS: dict[str, Made] = {
    **{
        f"Demo - MagicFace, {name}": (miniature(e), note(e, drawn=True))
        for name, e in EXAMPLES.items()
        if e.miniature_prompt
    },
    **{f"MagicFace - {name}": (checkpoint(e), note(e, drawn=False)) for name, e in EXAMPLES.items()},
}
