"""``python run.py persona``: learn a person from a picture and see them in new scenes.

Without arguments a held-out person of the drawn world is learnt on the miniature and shown in three scenes. ``train``
learns from your own pictures, ``play`` draws prompts with a saved persona; both take ``--checkpoint`` for a local SD1.x
or SD2.x file instead of the miniature. ``prove`` measures the method on held-out people, ``benchmark``
its cost.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lab.people import draw_person
from lab.persona_defaults import miniature_request
from likeness.core.errors import LikenessError, bad_input
from likeness.core.persona.persona import Persona
from likeness.core.persona.stages import LATE_CHOICES
from likeness.core.persona.tandem import TandemConfig
from likeness.formats.persona import load_persona, save_persona
from likeness.hosts.diffusers.miniature import miniature_host
from likeness.hosts.diffusers.persona import (
    PersonaHost,
    ddim_timesteps,
    image_width,
    persona_contexts,
    plain_contexts,
    play,
    prepare_photo,
)
from likeness.hosts.diffusers.pipeline import checkpoint_host
from likeness.training.persona.identity import Identifier
from likeness.training.persona.photos import Photo, clipseg_mask, ellipse_mask, fit, load_picture
from likeness.training.persona.request import PersonaTraining, StepReport
from likeness.training.persona.state import load_state, save_state
from likeness.training.persona.trainer import PersonaTrainer, train

logger = logging.getLogger("likeness")

PLACEHOLDER = "S*"
#: Subcommands that live in other folders.
ELSEWHERE = {"prove": "..evaluation.persona", "benchmark": "..benchmarks.persona"}
SCENES = (
    "a picture of a S* wearing a red sweater, portrait, in the snow",
    "a picture of a S* wearing a blue suit, portrait, on the beach",
    "a picture of a S* wearing a green hoodie, portrait, in the city",
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    root = argparse.ArgumentParser(prog="run.py persona", description=__doc__.split("\n\n")[0])
    root.set_defaults(command="demo")
    commands = root.add_subparsers(dest="command")
    demo = commands.add_parser("demo", help="learn a drawn person and show three scenes (the default)")
    demo.add_argument("--person", type=int, default=3, help="number of the held-out person (default 3, an average one)")
    learn = commands.add_parser("train", help="learn from pictures")
    learn.add_argument("--image", nargs="+", required=True, help="one or more pictures of the same person or thing")
    learn.add_argument("--mask", nargs="+", default=[], help="masks, white where the person is; one each, or one")
    learn.add_argument("--clipseg", help="folder with CLIPSeg weights, to make the masks")
    learn.add_argument("--supercategory", help="the plain word: face, cat, cup (default: face; miniature: person)")
    learn.add_argument("--style", action="store_true", help="learn a manner of drawing")
    draw = commands.add_parser("play", help="draw prompts with a saved persona")
    draw.add_argument("--persona", required=True, help="the persona file")
    draw.add_argument("--prompt", nargs="+", required=True, help=f"prompts with {PLACEHOLDER} in them")
    for sub in (demo, learn):
        _training_options(sub)
    for sub in (demo, draw):
        sub.add_argument("--play-steps", type=int, default=30, help="DDIM steps (default 30)")
        sub.add_argument("--guidance", type=float, default=6.0, help="classifier-free guidance (default 6)")
        sub.add_argument("--negative", default="", help="negative prompt")
    for sub in (demo, learn, draw):
        sub.add_argument("--checkpoint", help="a local SD1.x or SD2.x file or folder; default: the miniature")
        sub.add_argument("--out", default="output/persona", help="folder for results (default output/persona)")
        sub.add_argument("--seed", type=int, default=0, help="seed of training and drawing")
    return root


def _training_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--steps", type=int, help="training steps (default 1000; miniature 150)")
    sub.add_argument("--batch", type=int, help="samples a step (default 2)")
    sub.add_argument("--learning-rate", type=float, help="AdamW's step size (default 1e-4; miniature 2e-3)")
    sub.add_argument("--tokens", type=int, help="words per persona (default 4; miniature 8)")
    sub.add_argument("--stages", choices=("fixed", "iou"), help="fixed bounds, or from attention after a warm-up")
    sub.add_argument("--low", type=int, help="lowest timestep of the dynamic stage (default 400; miniature 500)")
    sub.add_argument("--high", type=int, help="highest timestep of the dynamic stage (default 800; miniature 900)")
    sub.add_argument("--late", choices=LATE_CHOICES,
                     help="below the stage: the last words held (default), or the plain word (miniature's default)")
    sub.add_argument("--tandem", type=float, help="weight of Tandem Equilibrium (default 0.001); 0: off")
    sub.add_argument("--precision", choices=("fp32", "bf16"), help="compute type (default fp32)")
    sub.add_argument("--identity", type=float, help="weight of the identity loss (miniature only; default 0)")
    sub.add_argument("--checkpointing", action="store_true", default=None, help="less memory, more time")
    sub.add_argument("--resume", action="store_true", help="go on with the unfinished training in --out")
    sub.add_argument("--name", default="persona", help="name of the persona file (default persona)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; user errors end with their message and status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or (given[0].startswith("--") and given[0] not in ("--help",)):
        given = ["demo", *given]
    if given[0] in ELSEWHERE:
        return importlib.import_module(ELSEWHERE[given[0]], __package__).main(given[1:])
    options = parser().parse_args(given)
    try:
        return {"demo": demo, "train": learn, "play": draw}[options.command](options)
    except LikenessError as error:
        logger.error("persona: %s", error)
        return 2


def _host(options: argparse.Namespace) -> tuple[PersonaHost, int]:
    return checkpoint_host(options.checkpoint) if options.checkpoint else miniature_host()


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
    host: PersonaHost,
    photos: list[Photo],
    request: PersonaTraining,
    pictures: list[Tensor],
) -> tuple[Persona, list[float]]:
    """Train with a progress line, resumable; returns the persona and its loss curve."""
    out = Path(options.out)
    identify = None
    if request.identity > 0:
        photos, identify = _with_identity(options, photos, pictures)
    trainer = PersonaTrainer(replace(request, image_width=image_width(photos[0])), host, photos, identify)
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
    from likeness.miniature.faces import MiniatureDetector, MiniatureEmbedder

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


def learn(options: argparse.Namespace) -> int:
    """``train``: from the user's pictures."""
    host, size = _host(options)
    request = request_of(options)
    pictures = [load_picture(path) for path in options.image]
    if len(options.mask) not in (0, 1, len(pictures)):
        raise bad_input("persona: --mask", f"{len(options.mask)} masks", "one for each picture, or one", "")
    masks = [_mask(options, request.supercategory, i, picture) for i, picture in enumerate(pictures)]
    photos = [prepare_photo(host, p, m, size) for p, m in zip(pictures, masks, strict=True)]
    run_training(options, host, photos, request, [fit(picture, size) for picture in pictures])
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
    from likeness.miniature.faces import MiniatureDetector

    faces = MiniatureDetector().detect(picture[None])[0]
    if not faces:
        raise bad_input(
            "persona: --image", f"{options.image[index]} with no face found", "a drawn face", "Give --mask."
        )
    return ellipse_mask(faces[0].box, *picture.shape[1:])


# --- drawing ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def draw_prompts(
    host: PersonaHost, prompts: Sequence[str], persona: Persona, size: int, options: argparse.Namespace
) -> Tensor:
    """One picture a prompt, ``B 3 H W`` in [0, 1]."""
    made = []
    for i, prompt in enumerate(prompts):
        contexts = persona_contexts(host, prompt, {PLACEHOLDER: persona}, ddim_timesteps(options.play_steps))
        made.append(_sample(host, contexts, size, options, options.seed + i))
    return torch.cat(made)


def _sample(host: PersonaHost, contexts: object, size: int, options: argparse.Namespace, seed: int) -> Tensor:
    noise = torch.randn(1, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(seed)).to(host.device)
    latents = play(host, contexts, noise, options.negative, options.play_steps, options.guidance)
    return host.decode_image(latents).clamp(0, 1)


class Plain:
    """An ordinary prompt where staged contexts are expected: the same at every timestep."""

    def __init__(self, host: PersonaHost, prompt: str) -> None:
        self.contexts = plain_contexts(host, [prompt])

    def at(self, timestep: float) -> object:
        """``1 L C`` contexts."""
        return self.contexts


def draw(options: argparse.Namespace) -> int:
    """``play``: pictures of prompts with a saved persona."""
    host, size = _host(options)
    persona = load_persona(options.persona)
    pictures = draw_prompts(host, options.prompt, persona, size, options)
    for i, picture in enumerate(pictures):
        path = save_picture(picture, Path(options.out) / f"{persona.name}_{i + 1}.png")
        logger.info("%s: %s", path, options.prompt[i])
    return 0


def demo(options: argparse.Namespace) -> int:
    """The default: a held-out drawn person, learnt and shown in three scenes beside the plain prompts."""
    host, size = _host(options)
    person = draw_person(options.person, size)
    photo = prepare_photo(host, person.image, person.mask, size)
    persona, history = run_training(options, host, [photo], request_of(options), [person.image])
    ours = draw_prompts(host, SCENES, persona, size, options)
    plain = [
        _sample(host, Plain(host, prompt.replace(PLACEHOLDER, persona.supercategory)), size, options, options.seed + i)
        for i, prompt in enumerate(SCENES)
    ]
    blank = torch.ones_like(person.image)
    rows = [[person.image.cpu(), *(p.cpu() for p in ours)], [blank, *(p[0].cpu() for p in plain)]]
    sheet = torch.cat([torch.cat(row, dim=2) for row in rows], dim=1)
    path = save_picture(sheet, Path(options.out) / f"{options.name}_sheet.png")
    record = {"prompts": SCENES, "loss": history, "training": persona.training}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1))
    logger.info("%s: the photo and the persona in three scenes; below, the same prompts without it", path)
    return 0


def save_picture(picture: Tensor, path: Path) -> Path:
    """``3 H W`` in [0, 1] to a PNG."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(path)
    return path
