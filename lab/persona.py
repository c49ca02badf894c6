"""``python run.py persona``: learn a person from a picture and see them in new scenes."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lab.people import draw_person
from lab.persona_defaults import miniature_request, persona_miniature
from lab.verbs import elsewhere, run_verb
from likeness.core.errors import bad_input
from likeness.core.persona.persona import Persona
from likeness.core.persona.stages import LATE_CHOICES
from likeness.core.persona.tandem import TandemConfig
from likeness.drawing.sheets import grid, to_picture
from likeness.formats.persona import load_persona, save_persona
from likeness.hosts.diffusers.checkpoints import load_checkpoint
from likeness.hosts.diffusers.persona import image_width, prepare_photo
from likeness.hosts.diffusers.pipeline import Personas, Pipeline
from likeness.miniature.faces import MiniatureDetector, MiniatureEmbedder
from likeness.training.persona.identity import Identifier
from likeness.training.persona.photos import Photo, clipseg_mask, ellipse_mask, fit, load_picture
from likeness.training.persona.request import PersonaTraining, StepReport
from likeness.training.persona.state import load_state, save_state
from likeness.training.persona.trainer import PersonaTrainer, train

logger = logging.getLogger("likeness")

PLACEHOLDER = "S*"
SCENES = (
    "a picture of a S* wearing a red sweater, portrait, in the snow",
    "a picture of a S* wearing a blue suit, portrait, on the beach",
    "a picture of a S* wearing a green hoodie, portrait, in the city",
)


def parser(verb: str) -> argparse.ArgumentParser:
    """The options of ``demo``, ``train`` or ``play``."""
    command, about = VERBS[verb]
    out = argparse.ArgumentParser(prog=f"run.py persona {verb}", description=inspect.getdoc(command) or about)
    if verb == "demo":
        out.add_argument("--person", type=int, default=3, help="number of the held-out person (default 3)")
    if verb == "train":
        out.add_argument("--image", nargs="+", required=True, help="one or more pictures of the same person or thing")
        out.add_argument("--mask", nargs="+", default=[], help="masks, white where the person is; one each, or one")
        out.add_argument("--clipseg", help="folder with CLIPSeg weights, to make the masks")
        out.add_argument("--supercategory", help="the plain word: face, cat, cup (default: face; miniature: person)")
        out.add_argument("--style", action="store_true", help="learn a manner of drawing")
    if verb == "play":
        out.add_argument("--persona", required=True, help="the persona file")
        out.add_argument("--prompt", nargs="+", required=True, help=f"prompts with {PLACEHOLDER} in them")
    if verb in ("demo", "train"):
        _training_options(out)
    if verb in ("demo", "play"):
        out.add_argument("--play-steps", type=int, default=30, help="DDIM steps (default 30)")
        out.add_argument("--guidance", type=float, default=6.0, help="classifier-free guidance (default 6)")
        out.add_argument("--negative", default="", help="negative prompt")
    out.add_argument("--checkpoint", help="a local SD1.x, SD2.x or SDXL file or folder; default: the miniature")
    out.add_argument("--out", default="output/persona", help="folder for results (default output/persona)")
    out.add_argument("--seed", type=int, default=0, help="seed of training and drawing")
    return out


def _training_options(out: argparse.ArgumentParser) -> None:
    out.add_argument("--steps", type=int, help="training steps (default 1000; miniature 150)")
    out.add_argument("--batch", type=int, help="samples a step (default 2)")
    out.add_argument("--learning-rate", type=float, help="AdamW's step size (default 1e-4; miniature 2e-3)")
    out.add_argument("--tokens", type=int, help="words per persona (default 4; miniature 8)")
    out.add_argument("--stages", choices=("fixed", "iou"), help="fixed bounds, or from attention after a warm-up")
    out.add_argument("--low", type=int, help="lowest timestep of the dynamic stage (default 400; miniature 500)")
    out.add_argument("--high", type=int, help="highest timestep of the dynamic stage (default 800; miniature 900)")
    out.add_argument("--late", choices=LATE_CHOICES,
                     help="below the stage: the last words held (default), or the plain word (miniature's default)")
    out.add_argument("--tandem", type=float, help="weight of Tandem Equilibrium (default 0.001); 0: off")
    out.add_argument("--precision", choices=("fp32", "bf16"), help="compute type (default fp32)")
    out.add_argument("--identity", type=float, help="weight of the identity loss (miniature only; default 0)")
    out.add_argument("--checkpointing", action="store_true", default=None, help="less memory, more time")
    out.add_argument("--resume", action="store_true", help="go on with the unfinished training in --out")
    out.add_argument("--name", default="persona", help="name of the persona file (default persona)")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_verb("persona", "PersonaMagic: a persona is learnt from pictures and spoken in prompts.", VERBS, argv)


def base_model(options: argparse.Namespace) -> Pipeline:
    """The checkpoint that was asked for, in float32 because it may be trained on, or the miniature."""
    return load_checkpoint(options.checkpoint, dtype=torch.float32) if options.checkpoint else persona_miniature()


def request_of(options: argparse.Namespace) -> PersonaTraining:
    """The training request: defaults of the base, changed by the options that were given."""
    names = ("steps", "batch", "learning_rate", "tokens", "stages", "low", "high", "late", "precision", "identity",
             "checkpointing", "supercategory", "style", "seed")  # fmt: skip
    given = {name: getattr(options, name, None) for name in names}
    changes = {name: value for name, value in given.items() if value is not None and value is not False}
    if options.tandem is not None:
        changes["tandem"] = TandemConfig(weight=options.tandem)
    return PersonaTraining(**changes) if options.checkpoint else miniature_request(**changes)


# --- learning -----------------------------------------------------------------------------------------------------


def run_training(
    options: argparse.Namespace,
    pipeline: Pipeline,
    photos: list[Photo],
    request: PersonaTraining,
    pictures: list[Tensor],
) -> tuple[Persona, list[float]]:
    """Train with a progress line, resumable; returns the persona and its loss curve."""
    out = Path(options.out)
    identify = None
    if request.identity > 0:
        photos, identify = _with_identity(options, photos, pictures)
    trainer = PersonaTrainer(replace(request, image_width=image_width(photos[0])), pipeline, photos, identify)
    state = out / f"{options.name}.state"
    if options.resume and state.is_file():
        load_state(trainer, state)
        logger.info("going on at step %d", trainer.step)
    persona = train(trainer, Reporter(), checkpoint=lambda t: save_state(t, state), name=options.name)
    path = save_persona(persona, out / options.name)
    state.unlink(missing_ok=True)
    logger.info("saved %s", path)
    return persona, trainer.history


def _with_identity(options: argparse.Namespace, photos: list[Photo], pictures: list[Tensor]) -> tuple:
    if options.checkpoint:
        raise bad_input(
            "persona: --identity", "a checkpoint", "the miniature", "ComfyUI's Persona Train takes real ones."
        )
    identifier = Identifier(MiniatureEmbedder())
    faces = MiniatureDetector().detect(torch.stack(pictures))
    marked = [identifier.reference(*row) for row in zip(photos, pictures, faces, strict=True)]
    return marked, identifier


class Reporter:
    """One line every few seconds: step, mean loss, time left."""

    def __init__(self, every: float = 5.0) -> None:
        self.every, self.start, self.last, self.losses = every, time.monotonic(), 0.0, []

    def __call__(self, report: StepReport) -> None:
        self.losses = [*self.losses[-49:], report.loss]
        now = time.monotonic()
        if now - self.last < self.every and report.step < report.total:
            return
        self.last = now
        left = (report.total - report.step) * report.seconds
        kind = "warm-up" if report.warmup else "step"
        mean = sum(self.losses) / len(self.losses)
        logger.info("%s %d of %d, loss %.4f, about %.0f s left", kind, report.step, report.total, mean, left)


def learn(argv: Sequence[str]) -> int:
    """Learn a persona from your own pictures, and save it."""
    options = parser("train").parse_args(argv)
    pipeline = base_model(options)
    request = request_of(options)
    pictures = [load_picture(path) for path in options.image]
    if len(options.mask) not in (0, 1, len(pictures)):
        raise bad_input("persona: --mask", f"{len(options.mask)} masks", "one for each picture, or one", "")
    masks = [_mask(options, request.supercategory, i, picture) for i, picture in enumerate(pictures)]
    photos = [prepare_photo(pipeline, p, m, pipeline.side) for p, m in zip(pictures, masks, strict=True)]
    run_training(options, pipeline, photos, request, [fit(picture, pipeline.side) for picture in pictures])
    return 0


def _mask(options: argparse.Namespace, word: str, index: int, picture: Tensor) -> Tensor:
    """The given mask, CLIPSeg's, or on the miniature an ellipse round the found face."""
    if options.mask:
        path = options.mask[index if len(options.mask) > 1 else 0]
        mask = load_picture(path).mean(dim=0, keepdim=True)
        return torch.nn.functional.interpolate(mask[None], size=picture.shape[1:], mode="nearest")[0]
    if options.clipseg:
        return clipseg_mask(picture, word, options.clipseg)
    if options.checkpoint:
        raise bad_input("persona: --mask", "none", "--mask or --clipseg", "Paint the person white on black.")
    faces = MiniatureDetector().detect(picture[None])[0]
    if not faces:
        raise bad_input(
            "persona: --image", f"{options.image[index]} with no face found", "a drawn face", "Give --mask."
        )
    return ellipse_mask(faces[0].box, *picture.shape[1:])


# --- drawing ------------------------------------------------------------------------------------------------------


def draw_prompts(
    pipeline: Pipeline, prompts: Sequence[str], personas: Personas, options: argparse.Namespace
) -> list[Tensor]:
    """One picture ``3 H W`` in [0, 1] a prompt."""
    return [
        pipeline.generate(
            prompt, [options.seed + i], steps=options.play_steps, scale=options.guidance, negative=options.negative,
            personas=personas,
        )[0]
        for i, prompt in enumerate(prompts)
    ]  # fmt: skip


def draw(argv: Sequence[str]) -> int:
    """Draw pictures of prompts with a saved persona."""
    options = parser("play").parse_args(argv)
    pipeline = base_model(options)
    persona = load_persona(options.persona)
    for i, pixels in enumerate(draw_prompts(pipeline, options.prompt, {PLACEHOLDER: persona}, options)):
        path = save(to_picture(pixels), Path(options.out) / f"{persona.name}_{i + 1}.png")
        logger.info("%s: %s", path, options.prompt[i])
    return 0


def demo(argv: Sequence[str]) -> int:
    """Learn a held-out drawn person and show them in three scenes beside the plain prompts."""
    options = parser("demo").parse_args(argv)
    pipeline = base_model(options)
    person = draw_person(options.person, pipeline.side)
    photo = prepare_photo(pipeline, person.image, person.mask, pipeline.side)
    persona, history = run_training(options, pipeline, [photo], request_of(options), [person.image])
    ours = draw_prompts(pipeline, SCENES, {PLACEHOLDER: persona}, options)
    plain = [prompt.replace(PLACEHOLDER, persona.supercategory) for prompt in SCENES]
    rows = [[person.image, *ours], [torch.ones_like(person.image), *draw_prompts(pipeline, plain, {}, options)]]
    path = save(grid(rows), Path(options.out) / f"{options.name}_sheet.png")
    record = {"prompts": SCENES, "loss": history, "training": persona.training}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1))
    logger.info("%s: the photo and the persona in three scenes; below, the same prompts without it", path)
    return 0


def save(picture: Image.Image, path: Path) -> Path:
    """Write a PNG, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


VERBS = {
    "demo": (demo, "learn a held-out drawn person and show three scenes"),
    "train": (learn, "learn a persona from your own pictures"),
    "play": (draw, "draw prompts with a saved persona"),
    "prove": (elsewhere("lab.evaluation.persona"), "measure every effect on held-out people and print the tables"),
    "benchmark": (elsewhere("lab.benchmarks.persona"), "what a training step and a sampling step cost"),
}
