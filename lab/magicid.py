"""``python run.py magicid``: MagicID's own weights trained (Multi-Mode Fusion) and measured, without ComfyUI.

``train`` learns identity attention and the Identity ControlNet: of the miniature on drawn people, or of a checkpoint
on what ``run.py idzoom`` made of photographs. ``prove`` measures weights.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from lab.evaluation import clone_faces, magicid_repair
from lab.evaluation import magicid as measure
from lab.evaluation.directions import save
from lab.evaluation.magicid_directions import directions
from lab.evaluation.magicid_sheet import sheet_of
from lab.evaluation.magicid_tables import GAP, report
from lab.evaluation.store import PictureFile
from lab.magicid_people import LANDMARKS, SKELETON, Size, cached
from lab.magicid_shards import Reader
from lab.magicid_validation import validation_sheet
from lab.verbs import elsewhere, run_verb
from likeness.core.errors import bad_input
from likeness.core.magicid.encoder import EncoderShape, build_encoder
from likeness.formats.magicid import MagicIdWeights, load_magicid, save_magicid
from likeness.hosts.diffusers.checkpoints import load_checkpoint
from likeness.hosts.diffusers.common import unet_layout
from likeness.hosts.diffusers.magicid import load_control, new_attention, new_control, training_host
from likeness.hosts.diffusers.miniature import miniature
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.miniature.faces import MiniatureEmbedder
from likeness.miniature.models import weights_file
from likeness.training.magicid.gauge import Gauge
from likeness.training.magicid.model import MagicIdModel
from likeness.training.magicid.request import CONTROL, PRECISIONS, UNET, MagicIdTraining, Phase, StepReport
from likeness.training.magicid.samples import Sample
from likeness.training.magicid.trainer import MagicIdTrainer, train

log = logging.getLogger("likeness")

OUTPUT = Path(__file__).parents[1] / "output" / "magicid"
PLACES = {"unet": (UNET,), "control": (CONTROL,), "both": (UNET, CONTROL)}
TOKENS = 8

#: The miniature's recipe: the UNet's identity attention first, then the ControlNet's from the same encoder.
MINIATURE_PHASES = (
    Phase("identity", 1000, (UNET,)),
    Phase("landmarks", 80, (CONTROL,), (LANDMARKS,), encoder=False),
    Phase("skeletons", 120, (CONTROL,), (SKELETON,), encoder=False),
    Phase("everything", 500, (CONTROL,), (LANDMARKS, SKELETON), clone_every=10, encoder=False),
)
MINIATURE = MagicIdTraining(
    phases=MINIATURE_PHASES, batch=8, learning_rate=1.2e-3, control_rate=0.5, betas=(0.9, 0.99), weight_decay=1e-3,
    nobody=0.05, alike=0.5, balanced=True, ema=0.995,
)  # fmt: skip
HELD_OUT = Size(0, 48)
GAUGED = 24  # of them, in the paired gap
SEED, HELD_OUT_SEED = 1, 77
TABLES = (*measure.SECTIONS, magicid_repair.SECTION, GAP)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_verb("magicid", "MagicID: several identities where they belong.", VERBS, argv)


# --- training ---------------------------------------------------------------------------------------------------------


def fresh_model(unet: Any, host: Any, places: Sequence[str], control: Any, vector: int) -> MagicIdModel:
    """An untrained encoder with untrained identity attention: nothing changes yet."""
    width = unet.config.cross_attention_dim
    encoder = build_encoder(EncoderShape("vector", width, TOKENS, vector))
    with torch.no_grad():  # unit vectors have small components
        encoder.proj[0].weight.mul_(vector**0.5)
    networks = {UNET: unet, CONTROL: control}
    attention = {place: new_attention(networks[place], width) for place in places}
    layouts = {place: unet_layout(networks[place]) for place in places}
    return MagicIdModel(host, encoder, attention, layouts, control if CONTROL in places else None)


@contextmanager
def made(pipeline: Pipeline, config: MagicIdTraining, vector: int, encoder: Path | None = None) -> Any:
    """The model of a training, its frozen base open; ``encoder``: weights whose face encoder it begins with."""
    torch.manual_seed(config.seed)
    control = new_control(pipeline.unet) if CONTROL in config.places else None
    with training_host(pipeline.unet, pipeline.alphas_cumprod, control, config.checkpointing) as host:
        model = fresh_model(pipeline.unet, host, config.places, control, vector)
        if encoder is not None:
            take_encoder(model, encoder)
        yield model


def take_encoder(model: MagicIdModel, file: Path) -> None:
    """Give the model the face encoder of a finished training.

    Raises:
        LikenessError: it is of another shape: another face recogniser, width of text or number of tokens.
    """
    came, ours = load_magicid(file).encoder, model.encoder
    if came.shape != ours.shape:
        raise bad_input("magicid train: --encoder", came.shape, str(ours.shape), "Use weights of this base model.")
    ours.load_state_dict(came.float().state_dict())


class Log:
    """One JSON object a line in ``log.jsonl``, a line on the screen every few seconds, TensorBoard where asked for."""

    def __init__(self, trainer: MagicIdTrainer, file: Path, every: float = 10.0) -> None:
        self.trainer, self.file, self.every, self.last, self.losses = trainer, file, every, 0.0, []

    def __call__(self, report: StepReport) -> None:
        """After every step."""
        self.losses = [*self.losses[-99:], report.loss]
        if report.clone or report.step % 20 == 0:
            mean = sum(self.losses) / len(self.losses)
            self.write(report.step, phase=report.phase, loss=mean, seconds=report.seconds, **report.parts)
        now = time.monotonic()
        if now - self.last > self.every and self.trainer.accelerator.is_main_process:
            self.last = now
            share = report.position / self.trainer.config.steps
            log.info("step %d (%.0f%%), %s, loss %.4f", report.step, 100 * share, report.phase, self.losses[-1])

    def measured(self, step: int, gaps: dict[str, float]) -> None:
        """After a measurement of the paired gaps."""
        if gaps:
            self.write(step, phase=self.trainer.phase.name, **gaps)

    def write(self, step: int, **values: Any) -> None:
        """One line; numbers to four digits."""
        numbers = {k: float(f"{v:.4g}") for k, v in values.items() if isinstance(v, float)}
        self.trainer.accelerator.log(numbers, step)
        if self.trainer.accelerator.is_main_process:
            with self.file.open("a") as file:
                file.write(json.dumps({"step": step, **values, **numbers}) + "\n")


def config_of(options: argparse.Namespace) -> MagicIdTraining:
    """The request: the miniature's recipe, or with a checkpoint the paper's, changed by what was given."""
    config = MagicIdTraining() if options.checkpoint else MINIATURE
    names = ("minutes", "batch", "accumulate", "learning_rate", "precision", "seed", "cfa_weight", "cfa_grid", "ema")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    phases = config.phases
    if options.places and options.checkpoint:
        phases = tuple(replace(p, places=PLACES[options.places]) for p in phases)
    elif options.places:
        phases = tuple(p for p in phases if set(p.places) <= set(PLACES[options.places]))
    if options.steps:
        total = sum(p.steps for p in phases)
        phases = tuple(replace(p, steps=max(1, round(p.steps * options.steps / total))) for p in phases)
    if options.clone_every is not None:
        phases = tuple(replace(p, clone_every=options.clone_every if p.clone_every else 0) for p in phases)
    return replace(config, phases=phases, checkpointing=options.checkpointing, **given)


def training_parser() -> argparse.ArgumentParser:
    """Options of ``train``."""
    parser = argparse.ArgumentParser(prog="run.py magicid train", description=inspect.getdoc(run_training))
    add = parser.add_argument
    add("--out", type=Path, default=OUTPUT / "train", help="folder of the weights, the log and the state")
    add("--resume", action="store_true", help="go on with the unfinished training in --out")
    add("--checkpoint", help="a local SD1.x file or folder, trained with --data; default: the miniature")
    add("--data", type=Path, help="shards or a folder that run.py idzoom wrote; default: drawn people")
    add("--side", type=int, help="side of the pictures in pixels (default: the model's)")
    add("--minutes", type=float, help="wall-clock budget that phases and schedule fill (default: by steps)")
    add("--steps", type=int, help="optimiser steps of all phases together (default 1700; checkpoint 1,150,000)")
    add("--places", choices=tuple(PLACES), help="whose identity attention learns (default: UNet, then ControlNet; "
                                                "checkpoint: ControlNet)")  # fmt: skip
    add("--encoder", type=Path, help="weights to take the face encoder from (with --places control: what the UNet's "
                                     "phase left)")  # fmt: skip
    add("--batch", type=int, help="pictures of a step, over all processes (default 8; checkpoint 128)")
    add("--accumulate", type=int, help="parts a step is computed in (default 1)")
    add("--learning-rate", type=float, help="AdamW's step size (default 1.2e-3; checkpoint 1e-4)")
    add("--precision", choices=PRECISIONS, help="autocast (default no)")
    add("--checkpointing", action="store_true", help="less memory, more time")
    add("--clone-every", type=int, help="every so manieth step is on clone pictures (default 10), 0: never")
    add("--cfa-weight", type=float, help="lambda of Eq. 4 (default 0.2)")
    add("--cfa-grid", type=int, help="token grids must be finer for L_cfa (default 32; else the model's finest)")
    add("--ema", type=float, help="decay of the average of the weights (default .995; checkpoint .9999)")
    add("--seed", type=int, help="of every random choice (default 0)")
    add("--scenes", type=int, default=Size.scenes, help=f"drawn scenes of 4 pictures (default {Size.scenes})")
    add("--singles", type=int, default=Size.singles, help=f"other drawn pictures (default {Size.singles})")
    add("--measure-every", type=int, default=150, help="steps between paired gaps and validation pictures (default "
                                                       "150), 0: never")  # fmt: skip
    add("--tensorboard", action="store_true", help="write TensorBoard's files, too")
    return parser


def run_training(argv: Sequence[str]) -> int:
    """Train identity attention and the Identity ControlNet by MMF; the same command under ``accelerate launch``."""
    options = training_parser().parse_args(argv)
    if options.checkpoint and not options.data:
        raise bad_input("magicid train: --data", "nothing", "shards of photographs", "Make them with run.py idzoom.")
    if options.tensorboard and not find_spec("tensorboard"):  # Accelerate would go on without a word
        raise bad_input("magicid train: --tensorboard", "no package tensorboard", "the extra 'training'",
                        "Install it: pip install tensorboard. Or leave the option out: log.jsonl says the same.")
    options.out.mkdir(parents=True, exist_ok=True)
    config = config_of(options)
    pipeline = base_model(options.checkpoint)
    samples, held_out, embedder = training_set(options, config, pipeline)
    with made(pipeline, config, samples[0].vectors.shape[-1], options.encoder) as model:
        trainer = make_trainer(config, model, samples, pipeline, held_out, options)
        state, record = options.out / "state", Log(trainer, options.out / "log.jsonl")
        if options.resume:
            trainer.restore(state)
            log.info("going on at step %d", trainer.step)

        def measured(step: int, gaps: dict[str, float]) -> None:
            record.measured(step, gaps)
            if held_out and trainer.accelerator.is_main_process:
                picture(trainer, pipeline, held_out, embedder, options.out / "validation")

        train(trainer, record, state, measure_every=options.measure_every, on_measure=measured)
        if trainer.accelerator.is_main_process:
            log.info("saved %s", export(trainer, options.out / "magicid.safetensors", embedder))
        trainer.accelerator.end_training()
    return 0


def base_model(checkpoint: str | None) -> Pipeline:
    """The checkpoint in float32, or the miniature.

    Raises:
        LikenessError: its family is not trained: SDXL (pooled text), or one that predicts velocity.
    """
    if checkpoint is None:
        return miniature()
    pipeline = load_checkpoint(checkpoint, dtype=torch.float32)
    if pipeline.pool is not None or pipeline.prediction != "epsilon":
        came = "SDXL" if pipeline.pool is not None else f"a model of {pipeline.prediction}"
        raise bad_input("magicid train: --checkpoint", came, "SD1.x (or SD2.x that predicts noise)", "Use another one.")
    return pipeline


def training_set(
    options: argparse.Namespace, config: MagicIdTraining, pipeline: Pipeline
) -> tuple[list[Sample], list[Sample], str]:
    """Samples to learn from, samples of others for the paired gap, and the name of the face recogniser."""
    if options.data is None:
        size = Size(options.scenes, options.singles)
        samples = cached(pipeline, size, SEED, options.out / f"people_{size.scenes}_{size.singles}.pt")
        held_out = cached(pipeline, HELD_OUT, HELD_OUT_SEED, options.out / "held_out.pt", held_out=True)
        return samples, held_out[:GAUGED], MiniatureEmbedder.name
    reader = Reader(pipeline, options.side, config.modes)
    samples = reader.samples(options.data)
    apart = min(GAUGED, len(samples) // 10)
    return samples[apart:], samples[:apart], reader.embedder


def make_trainer(
    config: MagicIdTraining, model: MagicIdModel, samples: list[Sample], pipeline: Pipeline, held_out: list[Sample],
    options: argparse.Namespace,
) -> MagicIdTrainer:  # fmt: skip
    """A trainer on Accelerate, as the options have it."""
    loggers = {"log_with": "tensorboard", "project_dir": str(options.out)} if options.tensorboard else {}
    accelerator = Accelerator(mixed_precision=config.precision, **loggers)
    if options.tensorboard:
        accelerator.init_trackers("magicid")
    empty = pipeline.conditioning([""]).context[0].cpu()
    return MagicIdTrainer(config, model, samples, empty, accelerator, held_out)


def picture(
    trainer: MagicIdTrainer, pipeline: Pipeline, held_out: Sequence[Sample], embedder: str, folder: Path
) -> None:  # fmt: skip
    """What held-out people look like by the averaged weights, a sheet a measurement."""
    folder.mkdir(exist_ok=True)
    title = f"step {trainer.step}, {trainer.phase.name}"
    made = validation_sheet(
        pipeline, trainer.weights(embedder), held_out, trainer.sampler.empty, trainer.phase, title
    )  # fmt: skip
    made.save(folder / f"{trainer.step:07d}.jpg", quality=90)


def export(trainer: MagicIdTrainer, path: Path, embedder: str) -> Path:
    """The averaged weights in half precision."""
    told = {"minutes": round(trainer.spent / 60, 1), "batch": trainer.config.batch, "seed": trainer.config.seed}
    told |= {"phases": [[p.name, p.steps, list(p.places), list(p.modes), p.clone_every] for p in trainer.config.phases]}
    return save_magicid(trainer.weights(embedder, **told), path, torch.float16)


# --- proof ------------------------------------------------------------------------------------------------------------


def prove(argv: Sequence[str]) -> int:
    """Measure the weights on held-out people of the miniature and write the tables; goes on where it was ended."""
    parser = argparse.ArgumentParser(prog="run.py magicid prove", description=inspect.getdoc(prove))
    parser.add_argument("--weights", type=Path, help="a file of train (default: the shipped ones)")
    parser.add_argument("--people", type=int, default=12, help="held-out cases of each table (default 12; DIIR twice)")
    parser.add_argument("--seeds", type=int, help="pictures of each case (default: 2, anywhere in the picture 1)")
    parser.add_argument("--steps", type=int, default=15, help="DDIM steps (default 15; DIIR 30)")
    parser.add_argument("--tables", default=",".join(TABLES), help="names, commas between (all)")
    parser.add_argument("--clone-faces", type=Path, nargs=2, metavar=("WITH", "WITHOUT"),
                        help="instead: two files of train, with clone pictures and without")  # fmt: skip
    parser.add_argument("--out", type=Path, default=OUTPUT / "prove", help="folder of records, pictures and tables")
    options = parser.parse_args(argv)
    names = [name.strip() for name in options.tables.split(",")]
    if not set(names) <= set(TABLES):
        parser.error(f"--tables: got {options.tables}; expected some of {', '.join(TABLES)}")
    pipeline, store = miniature(), PictureFile(options.out)
    work = clone_work(pipeline, options) if options.clone_faces else tables_work(pipeline, options, names, store)
    for key, compute in tqdm(list(work), desc="cases", unit="case"):
        store.record(key, compute)
    text = report(store.records, options.steps)
    (options.out / "tables.md").write_text(text + "\n", encoding="utf-8")
    save(options.out, directions(store.records))
    picture = sheet_of(store)
    if picture is not None:
        picture.save(options.out / "two.jpg", quality=88)
    log.info("%s", text)
    return 0


Work = Iterator[tuple[str, Callable[[], dict]]]
"""Key and computation of every record."""


def tables_work(pipeline: Pipeline, options: argparse.Namespace, names: Sequence[str], store: PictureFile) -> Work:
    """Of the tables with these names."""
    weights = load_magicid(options.weights or weights_file("magicid"))
    control = load_control(pipeline.unet, weights) if weights.control else None
    lab = measure.Lab(pipeline, weights, control, options.steps)
    drawn = [name for name in names if name in measure.SECTIONS]
    yield from measure.work(lab, options.people, options.seeds, drawn, store.keep)
    if magicid_repair.SECTION in names:
        yield from magicid_repair.Repairs(pipeline, weights, lab.placed).work(2 * options.people)
    if GAP in names:
        yield from gaps(pipeline, weights, control, options.out / "held_out.pt")


def clone_work(pipeline: Pipeline, options: argparse.Namespace) -> Work:
    """Of two trainings' ControlNets, with clone pictures and without."""
    labs = {}
    for name, file in zip((clone_faces.WITH, clone_faces.WITHOUT), options.clone_faces, strict=True):
        weights = load_magicid(file)
        if CONTROL not in weights.attention:
            raise bad_input("magicid prove: --clone-faces", f"{file.name} without a ControlNet", "one that learnt it",
                            "Train with --places control.")  # fmt: skip
        labs[name] = measure.Lab(pipeline, weights, load_control(pipeline.unet, weights), options.steps)
    held_out = cached(pipeline, HELD_OUT, HELD_OUT_SEED, options.out / "held_out.pt", held_out=True)
    yield from clone_faces.work(labs, held_out, options.people, range(1, (options.seeds or 2) + 1))


def gaps(pipeline: Pipeline, weights: MagicIdWeights, control: Any, file: Path) -> Work:
    """Key and computation of each place's paired gap, in the phase of the recipe that trains it last."""

    def measured(phase: Phase) -> dict:
        held_out = cached(pipeline, HELD_OUT, HELD_OUT_SEED, file, held_out=True)[:GAUGED]
        empty = pipeline.conditioning([""]).context[0].cpu()
        with training_host(pipeline.unet, pipeline.alphas_cumprod, control) as host:
            layouts = {UNET: unet_layout(pipeline.unet)} | ({CONTROL: unet_layout(control)} if control else {})
            model = MagicIdModel(host, weights.encoder.float(), dict(weights.attention), layouts, control).float()
            return Gauge(MINIATURE, held_out, empty).measure(model, phase)

    for place in weights.attention:
        phase = next(p for p in reversed(MINIATURE_PHASES) if p.places == (place,))
        yield f"{GAP}/held out/{place}", partial(measured, phase)


VERBS = {
    "benchmark": (elsewhere("lab.benchmarks.magicid"), "what identities cost a step, beside a loop over them"),
    "prove": (prove, "measure the weights on held-out people of the miniature"),
    "train": (run_training, "learn identity attention and the Identity ControlNet by Multi-Mode Fusion"),
}
