"""The PersonaMagic examples of ``workflows/``: on the miniature, and on a user's SD1.5 checkpoint."""

from __future__ import annotations

from typing import Any

from lab.workflows import samples
from lab.workflows.layout import Prompt, node
from lab.workflows.magicface_workflows import CAPTION, MAN, MASK_OUTPUTS, PERSON, PROMPTED, SCARF, Made
from lab.workflows.models import SD15
from lab.workflows.notes import Note

FACE = MASK_OUTPUTS["face"]
SAMPLING = {"steps": 20, "cfg": 6.0, "sampler_name": "ddim", "scheduler": "ddim_uniform", "denoise": 1.0}
SD_SAMPLING = {"steps": 50, "cfg": 8.0, "sampler_name": "ddim", "scheduler": "ddim_uniform", "denoise": 1.0}
MODEL = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2]}


def side() -> int:
    """Side of the pictures the miniature was trained on."""
    from likeness.miniature.models import picture_size

    return picture_size()


def world(prompts: tuple[str, ...]) -> str:
    """Prompts in the miniature's words, one a line."""
    return "\n".join(prompts)


def drawn(title: str, **changes: Any) -> dict[str, Any]:
    """A Miniature Sample node."""
    return node("LikenessMiniatureSample", title, None, **{**PERSON, "size": side(), **changes})


def trained(
    name: str, picture: str, mask: list[Any], word: str, placeholder: str, options: dict[str, Any], **inputs: Any
) -> Prompt:
    """Persona Train on a node's picture, with its options beside it; ``mask`` links to its mask."""
    return {
        f"{name}_options": node("LikenessPersonaTrainOptions", None, None, **options),
        name: node(
            "LikenessPersonaTrain",
            **{**MODEL, "image": [picture, 0], "mask": mask, "supercategory": word,
               "placeholder": placeholder, "options": [f"{name}_options", 0], **inputs},
        ),
    }  # fmt: skip


def learnt(name: str, picture: str, word: str, placeholder: str, **changes: Any) -> Prompt:
    """Persona Train on a drawn picture, with what suits the miniature."""
    from lab.persona_defaults import WORLD_TANDEM, WORLD_TEMPLATES, miniature_request

    request = miniature_request()
    mask = changes.pop("mask", [picture, FACE])
    inputs = {key: changes.pop(key) for key in ("personas",) if key in changes}
    shared = ("steps", "batch", "tokens", "learning_rate", "low", "high", "late", "precision")
    options = {
        **{key: getattr(request, key) for key in shared}, "training_seed": request.seed, "preview_every": 0,
        "preview_prompt": "a picture of a S*, portrait", "name": f"miniature {placeholder}",
        "templates": world(WORLD_TEMPLATES), "tandem_prompts": world(WORLD_TANDEM), **changes,
    }  # fmt: skip
    return trained(name, picture, mask, word, placeholder, options, **inputs)


def shot(
    name: str, prompt: str, personas: str, title: str, seed: int, sampling: dict, plain: str = "", **changes: Any
) -> Prompt:
    """Apply, sample, decode and save one picture.

    Args:
        plain: the prompt with the plain word, encoded apart; it is what the sampler gets when Apply is bypassed.
    """
    latent = changes.pop("latent_image", None)
    graph = {}
    if plain:
        title_plain = "The prompt with the plain word"
        graph[f"{name}_plain"] = node("CLIPTextEncode", title_plain, [320, 130], clip=["checkpoint", 1], text=plain)
        changes["positive"] = [f"{name}_plain", 0]
    return {
        **graph,
        f"{name}_apply": node(
            "LikenessPersonaApply",
            **{"model": ["checkpoint", 0], "clip": ["checkpoint", 1], **changes}, personas=[personas, 0], prompt=prompt,
        ),
        **painted(name, f"{name}_apply", title, seed, sampling, latent),
    }  # fmt: skip


def painted(name: str, applied: str, title: str, seed: int, sampling: dict, latent: list[Any] | None = None) -> Prompt:
    """Sample, decode and save one picture with the model and the positive conditioning of an Apply node."""
    return {
        f"{name}_sampler": node(
            "KSampler", None, None, model=[applied, 0], positive=[applied, 1],
            negative=["negative", 0], latent_image=latent or ["latent", 0], seed=seed, **sampling,
        ),
        f"{name}_decode": node("VAEDecode", samples=[f"{name}_sampler", 0], vae=["checkpoint", 2]),
        f"{name}_save": node(
            "SaveImage", title, [320, 340], images=[f"{name}_decode", 0], filename_prefix=f"likeness/persona_{name}"
        ),
    }  # fmt: skip


def frame(size: int, checkpoint: dict[str, Any]) -> Prompt:
    """Checkpoint, empty negative and empty latent."""
    return {
        "checkpoint": checkpoint,
        "negative": node("CLIPTextEncode", "Negative", [320, 110], clip=["checkpoint", 1], text=""),
        "latent": node("EmptyLatentImage", width=size, height=size, batch_size=1),
    }


def miniature_train() -> Prompt:
    """Learn a drawn person, and see them in new scenes."""
    scenes = (
        ("snow", "a picture of a S* wearing a red sweater, portrait, in the snow", "In the snow"),
        ("beach", "a picture of a S* wearing a blue suit, portrait, on the beach", "On the beach"),
    )
    # a person without a beard, and a seed chosen by eye, so that the mouth is seen at this size
    graph = {**frame(side(), node("LikenessMiniatureLoader")), "picture": drawn("The person", identity=18)}
    graph |= learnt("train", "picture", "person", "S*")
    graph["loss"] = node("PreviewImage", "Loss", [320, 240], images=["train", 1])
    graph["store"] = node("LikenessPersonaSave", personas=["train", 0], name="miniature_person", overwrite=True)
    for i, (name, prompt, title) in enumerate(scenes):
        plain = prompt.replace("S*", "person") if i == 0 else ""
        graph |= shot(name, prompt, "train", title, 2, SAMPLING, plain)
    return graph


def reference(picture: str, concept: str, mask: int, prompt: Any, **changes: Any) -> dict[str, Any]:
    """A MagicFace Reference node."""
    values = {
        "image": [picture, 0], "concept": concept, "mask": [picture, mask], "prompt": prompt,
        "weight": MAN.drawn_weight,
    }  # fmt: skip
    size = PROMPTED if isinstance(prompt, list) else None
    return node("LikenessMagicFaceReference", None, size, **{**values, **changes})


def with_magicface(
    personas: str, references: str, plain: str, word: str, seed: int, sampling: dict[str, Any]
) -> Prompt:
    """The same seed three times: both methods on one model, the persona alone, MagicFace alone.

    Args:
        plain: the prompt with the persona's plain word ``word``, which is also the reference's concept.
    """
    spoken = plain.replace(word, "S*", 1)
    magicface = node(
        "LikenessMagicFaceApply",
        **MODEL, references=[references, 0], prompt=plain, alpha=0.4,
    )  # fmt: skip
    graph = {"magicface": magicface}
    graph |= shot("both", spoken, personas, "Both", seed, sampling, model=["magicface", 0], positive=["magicface", 1])
    graph |= shot("persona", spoken, personas, "The persona alone", seed, sampling)
    return graph | painted("magicface", "magicface", "MagicFace alone", seed, sampling)


def miniature_magicface() -> Prompt:
    """A persona in the words, MagicFace in the self-attention, which brings a scarf as well."""
    graph = {**frame(side(), node("LikenessMiniatureLoader")), "picture": drawn("The person")}
    graph |= learnt("train", "picture", "person", "S*")
    graph["scarf"] = drawn("The scarf", **SCARF.drawn)
    graph["reference"] = reference("picture", "person", MASK_OUTPUTS["person"], ["picture", CAPTION])
    graph["reference_scarf"] = reference(
        "scarf", "scarf", MASK_OUTPUTS["accessory"], ["scarf", CAPTION], references=["reference", 0]
    )
    plain = "a picture of a person wearing a black hoodie and a scarf, portrait, in the jungle"
    return graph | with_magicface("train", "reference_scarf", plain, "person", 1, SAMPLING)


def checkpoint() -> dict[str, Any]:
    """The user's SD1.5."""
    return node("CheckpointLoaderSimple", ckpt_name=SD15)


def photo(title: str) -> dict[str, Any]:
    """The user's picture."""
    return node("LoadImage", f"{title} (paint its mask)", [280, 330], image=samples.MAN)


def loaded(title: str, placeholder: str, **changes: Any) -> dict[str, Any]:
    """Persona Load."""
    return node("LikenessPersonaLoad", title, None, persona="my_person.safetensors", placeholder=placeholder, **changes)


def sd_train() -> Prompt:
    """Learn a person from one photo, keep it, and draw it."""
    options = {"name": "my person", "precision": "bf16", "preview_every": 250}
    graph = {**frame(512, checkpoint()), "picture": photo("Your photo")}
    graph |= trained("train", "picture", ["picture", 1], "face", "S*", options)
    graph["loss"] = node("PreviewImage", "Loss", [320, 240], images=["train", 1])
    graph["store"] = node("LikenessPersonaSave", personas=["train", 0], name="my_person", overwrite=False)
    prompt = "a photo of S* in the snow"
    return graph | shot("snow", prompt, "train", "New scene", 1, SD_SAMPLING, prompt.replace("S*", "face"))


def sd_play() -> Prompt:
    """A saved person in scenes, expressions, and one region of a picture."""
    graph = {**frame(512, checkpoint()), "person": loaded("The person", "S*")}
    graph |= shot("scene", "S* as an astronaut on the moon", "person", "New scene", 1, SD_SAMPLING)
    graph |= shot("expression", "a photo of S* laughing, eyes closed", "person", "Expression", 2, SD_SAMPLING)
    graph["background"] = node("LoadImage", "Paint where the person goes", [280, 330], image=samples.PLACE)
    graph["encode"] = node("VAEEncode", pixels=["background", 0], vae=["checkpoint", 2])
    graph["region"] = node("SetLatentNoiseMask", samples=["encode", 0], mask=["background", 1])
    return graph | shot(
        "local", "a photo of S*", "person", "In this region only", 3, SD_SAMPLING, latent_image=["region", 0]
    )


def sd_style() -> Prompt:
    """A person and a learnt style in one prompt."""
    graph = {**frame(512, checkpoint()), "person": loaded("The person", "S1*")}
    graph["manner"] = loaded("The style", "S2*", personas=["person", 0])
    return graph | shot("style", "a photo of S1* in the style of S2*", "manner", "Both", 1, SD_SAMPLING)


def sd_expression() -> Prompt:
    """A saved person in three expressions; only the words differ."""
    graph = {**frame(512, checkpoint()), "person": loaded("The person", "S*")}
    for name, words in (("smiling", "smiling"), ("sad", "sad, crying"), ("surprised", "surprised, mouth open")):
        graph |= shot(name, f"a photo of S*, {words}", "person", name.capitalize(), 1, SD_SAMPLING)
    return graph


def sd_magicface() -> Prompt:
    """A saved person in the words, MagicFace with a photo of them in the self-attention."""
    graph = {**frame(512, checkpoint()), "person": loaded("The person", "S*"), "picture": photo("A photo of them")}
    graph["reference"] = reference("picture", "face", 1, "a photo of a face", weight=MAN.weight)
    plain = "a photo of face, wearing a red hat, in the snow"
    return graph | with_magicface("person", "reference", plain, "face", 1, SD_SAMPLING)


def sd_lora() -> Prompt:
    """A saved person on a model with a LoRA, and without it."""
    graph = {**frame(512, checkpoint()), "person": loaded("The person", "S*")}
    graph["lora"] = node(
        "LoraLoader", model=["checkpoint", 0], clip=["checkpoint", 1], lora_name="my_lora.safetensors",
        strength_model=0.8, strength_clip=0.8,
    )  # fmt: skip
    prompt = "a photo of S*, wearing a red hat, in the snow"
    graph |= shot("lora", prompt, "person", "With the LoRA", 1, SD_SAMPLING, model=["lora", 0], clip=["lora", 1])
    return graph | shot("plain", prompt, "person", "Without", 1, SD_SAMPLING)


RUN = "nothing to choose: model and pictures come with the pack. Press *Run*; learning takes some minutes on a CPU."
OWN = "choose an SD1.5 checkpoint and your own picture; paint the face with *Open in MaskEditor*. Then press *Run*."
SAVED = "choose an SD1.5 checkpoint and the persona you trained on it."

WORKFLOWS: dict[str, Made] = {
    "Demo - PersonaMagic, learn a person": (
        miniature_train,
        Note(
            "One picture is enough. The person is learnt as words that change over the steps, and is then called S* "
            "in a prompt.",
            RUN,
            "the person in new scenes, and a plot of the loss. It jumps with every step's noise: look at its mean.",
        ),
    ),
    "Demo - PersonaMagic with MagicFace": (
        miniature_magicface,
        Note(
            "Both on one model: the persona in the words, MagicFace in the self-attention, which brings the scarf.",
            RUN,
            "the same seed three times: both, the persona alone, MagicFace alone.",
        ),
    ),
    "PersonaMagic - 1 learn a person": (
        sd_train,
        Note(
            "A person, learnt from one photo as a word of the prompt.",
            OWN,
            "the persona as a file in `models/personas`, and a first picture with it. The loss jumps with every "
            "step's noise: look at its mean.",
            "The other PersonaMagic templates use the file.",
        ),
    ),
    "PersonaMagic - 2 new scenes": (
        sd_play,
        Note(
            "A saved person in a new scene, with an expression, and in one region of a picture.",
            f"{SAVED} Choose the picture to paint in and mark the place with *Open in MaskEditor*.",
            "three pictures.",
        ),
    ),
    "PersonaMagic - 3 expressions": (
        sd_expression,
        Note(
            "A saved person in three expressions.", SAVED, "three pictures of one seed; only the prompt's words differ."
        ),
    ),
    "PersonaMagic - 4 with a learnt style": (
        sd_style,
        Note(
            "A saved person and a saved style in one prompt.",
            f"{SAVED} Train the style in the same way, with *style* switched on and a mask of the whole picture.",
            "the person in that style.",
        ),
    ),
    "PersonaMagic - 5 with a LoRA": (
        sd_lora,
        Note(
            "Model and text encoder go through *Load LoRA* before *Persona Apply*.",
            f"{SAVED} Choose a LoRA for that checkpoint.",
            "the same seed with the LoRA and without.",
        ),
    ),
    "PersonaMagic - 6 with MagicFace": (
        sd_magicface,
        Note(
            "Both on one model: the persona in the words, MagicFace with a photo of the same person.",
            f"{SAVED} Choose the photo and paint the face with *Open in MaskEditor*.",
            "the same seed three times: both, the persona alone, MagicFace alone.",
            "The prompt of *MagicFace Apply* is that of *Persona Apply* with the plain word the persona was trained "
            "with (here *face*) in place of S*; it is also the concept of the reference.",
        ),
    ),
}
