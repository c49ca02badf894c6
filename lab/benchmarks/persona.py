"""PersonaMagic's cost: a training step against the least it can take, and sampling against vanilla.

Run it as ``python run.py persona benchmark``. The limit of a training step is one forward and one
activation-only backward of the UNet at the same batch (the gradient of the contexts, none of weights). Random weights:
cost does not depend on them.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.benchmarks.measure import Demand, demand, device_name, measure, place
from likeness.hosts.diffusers.persona import clip_text, persona_contexts
from likeness.hosts.diffusers.pipeline import LATENT_FACTOR, Pipeline
from likeness.training.persona.photos import Photo
from likeness.training.persona.request import PersonaTraining
from likeness.training.persona.trainer import PersonaTrainer

log = logging.getLogger("likeness")

LIMIT_TRAINING, LIMIT_SAMPLING = 1.15, 1.03
TOGETHER = 5  # sampling steps timed as one

#: name: (UNet's widths, heads, context width, text layers, text heads, latent side)
SHAPES = {
    "sd15": ((320, 640, 1280, 1280), 8, 768, 12, 12, 64),
    "half": ((160, 320, 640, 640), 8, 384, 12, 6, 32),
    "miniature": ((64, 64, 128, 128), 4, 128, 4, 4, 32),
}


class Words:
    """A tokenizer that costs nothing: one id per word."""

    bos, eos, pad, length = 49406, 49407, 49407, 77

    def pieces(self, text: str) -> list[int]:
        """Ids of the words."""
        return [sum(map(ord, word)) % 49000 for word in text.split()]


def random_pipeline(shape: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Pipeline:
    """A UNet and text encoder of a known shape with random weights."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    widths, heads, context, layers, text_heads, side = SHAPES[shape]
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=side, block_out_channels=widths, cross_attention_dim=context, attention_head_dim=heads
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=context, intermediate_size=4 * context, num_hidden_layers=layers,
            num_attention_heads=text_heads, eos_token_id=49407, bos_token_id=49406,
        )
    )  # fmt: skip
    return Pipeline(
        unet=place(unet.eval(), device, dtype),
        text=clip_text(place(text.eval(), device, torch.float32)),
        tokenizer=Words(),
        encode_image=lambda x: x,
        decode_image=lambda x: x,
        side=side * LATENT_FACTOR,
        name=shape,
    )


def random_trainer(pipeline: Pipeline, batch: int, precision: str) -> PersonaTrainer:
    """A trainer on one random photo, all default terms on."""
    device, side = pipeline.device, pipeline.side // LATENT_FACTOR
    photo = Photo(
        torch.randn(4, side, side, device=device), torch.ones(1, side, side, device=device), torch.randn(512).to(device)
    )
    return PersonaTrainer(PersonaTraining(batch=batch, precision=precision), pipeline, [photo])


def limit_step(pipeline: Pipeline, batch: int, precision: str) -> Callable[[], None]:
    """One forward and one activation-only backward of the UNet, nothing else."""
    device, width = pipeline.device, sum(pipeline.text.widths)
    side = pipeline.side // LATENT_FACTOR
    noisy = torch.randn(batch, 4, side, side, device=device)
    times = torch.full((batch,), 600, device=device)
    contexts = [torch.randn(batch, 77, width, device=device, requires_grad=True) for _ in range(2)]

    def step() -> None:
        with pipeline.open() as denoise, torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            denoise(noisy, times, *contexts).float().square().mean().backward()

    return step


@dataclass(frozen=True)
class Timing:
    """Median seconds and the highest peak in MiB above what was there before."""

    seconds: float
    peak_mib: float


def alternate(works: dict[str, Callable[[], None]], rounds: int, device: torch.device, busy: bool) -> dict[str, Timing]:
    """Time pieces of work in turn, every other round backwards, so that a disturbance meets all of them.

    Args:
        busy: count this process's CPU time instead of the clock, for a machine that others use too.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    peaks = dict.fromkeys(works, 0.0)
    for turn in range(rounds + 1):
        for name, work in list(works.items())[:: -1 if turn % 2 else 1]:
            before = time.process_time()
            result = measure(work, device)
            spent = time.process_time() - before
            if turn:  # the first round warms up
                taken[name].append(spent if busy else result.seconds)
                peaks[name] = max(peaks[name], result.above_mib)
    return {name: Timing(statistics.median(taken[name]), peaks[name]) for name in works}


def training_rows(pipeline: Pipeline, batch: int, precision: str, rounds: int, busy: bool) -> list[str]:
    """The limit and a full training step."""
    trainer = random_trainer(pipeline, batch, precision)

    def step() -> None:
        with pipeline.open() as denoise:
            trainer.advance(denoise, (400, 800))

    works = {"limit": limit_step(pipeline, batch, precision), "step": step}
    found = alternate(works, rounds, pipeline.device, busy)
    limit, full = found["limit"], found["step"]
    ratio = full.seconds / limit.seconds
    return [
        f"| UNet forward + activation-only backward, batch {batch} | {limit.seconds:.3f} | {limit.peak_mib:.0f} "
        "| 1 | | | | |",
        f"| training step, batch {batch} | {full.seconds:.3f} | {full.peak_mib:.0f} | {ratio:.3f} | {LIMIT_TRAINING} "
        "| | | |",
    ]


@torch.no_grad()
def sampling_works(pipeline: Pipeline, steps: int) -> dict[str, Callable[[], None]]:
    """Guided steps with plain and with persona contexts, and the text side of a whole schedule."""
    trainer = random_trainer(pipeline, 1, "fp32")
    persona, device, side = trainer.persona(), pipeline.device, pipeline.side // LATENT_FACTOR
    schedule = pipeline.scheduler(steps).timesteps.tolist()
    contexts = persona_contexts(pipeline, "a photo of S* in the snow", {"S*": persona}, schedule)
    noisy, times = torch.randn(2, 4, side, side, device=device), torch.full((2,), 601, device=device)

    def vanilla() -> None:
        key: Tensor = contexts.early.key.expand(2, -1, -1)
        for _ in range(TOGETHER):
            pipeline.unet(noisy, times, encoder_hidden_states=key)

    def spoken() -> None:
        with pipeline.open() as denoise:  # once a run, as in playing
            for _ in range(TOGETHER):
                key, value = (x.expand(2, -1, -1) for x in contexts.at(601))
                denoise(noisy, times, key, value)

    return {
        "vanilla": vanilla,
        "persona": spoken,
        "text": lambda: persona_contexts(pipeline, "a photo of S* in the snow", {"S*": persona}, schedule),
    }


def sampling_rows(pipeline: Pipeline, rounds: int, busy: bool, steps: int = 50) -> list[str]:
    """A guided step with plain and with persona contexts, and the text side of a whole schedule spread over it."""
    found = alternate(sampling_works(pipeline, steps), rounds, pipeline.device, busy)
    plain, spoken = (
        demand(lambda device, name=name: sampling_works(random_pipeline(pipeline.name, device), steps)[name])
        for name in ("vanilla", "persona")
    )
    base = found["vanilla"].seconds / TOGETHER
    ours = found["persona"].seconds / TOGETHER + found["text"].seconds / steps
    return [
        f"| guided sampling step, plain prompt | {base:.3f} | {found['vanilla'].peak_mib:.0f} | 1 | "
        f"| {plain.columns(plain)} |",
        f"| with a persona, text side of {steps} steps spread over them | {ours:.3f} | {found['persona'].peak_mib:.0f} "
        f"| {ours / base:.3f} | {LIMIT_SAMPLING} | {spoken.columns(plain)} |",
    ]


def main(argv: Sequence[str]) -> int:
    """The command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="run.py persona benchmark", description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), help="default: sd15 on CUDA, half on the CPU")
    parser.add_argument("--batch", type=int, default=2, help="training batch (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the warm-up (default 5)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="compute type of training")
    parser.add_argument("--busy", action="store_true", help="count CPU time, for a machine that others use too")
    options = parser.parse_args(list(argv))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = options.shape or ("sd15" if device.type == "cuda" else "half")
    pipeline = random_pipeline(shape, device)
    side = pipeline.side // LATENT_FACTOR
    log.info("%s, shape %s, latents %d x %d", device_name(device), shape, side, side)
    rows = training_rows(pipeline, options.batch, options.precision, options.rounds, options.busy)
    rows += sampling_rows(pipeline, options.rounds, options.busy)
    head = f"| | seconds | peak MiB | ratio | bar | {Demand.HEADS} |\n|---|---|---|---|---|---|---|---|"
    log.info("%s\n%s", head, "\n".join(rows))
    return 0
