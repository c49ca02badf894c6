"""``python run.py miniature report``: how good the miniature is, on captions and people it was never trained on.

Writes beside this file ``samples.png`` (pictures for held-out captions), ``curves.png`` (training losses) and
``report.md`` (the tables, MagicFace's variants among them), and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from lab.evaluation import magicface
from lab.evaluation.drawn import prompt_hits, told
from lab.evaluation.metrics import psnr, sharpness
from lab.evaluation.referees import drawn
from lab.miniature.loop import LOGS
from lab.people import Case, pair_cases, single_cases
from likeness.drawing.sheets import Tile, sheet, to_image
from likeness.hosts.diffusers.miniature import miniature
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.miniature.world import Picture, sample_picture

HERE = Path(__file__).parent
BATCH = 8


def held_out_pictures(count: int, seed: int = 4000) -> list[Picture]:
    """Pictures of one held-out person each, flat style, told entirely by their captions."""
    rng = random.Random(seed)
    out: list[Picture] = []
    while len(out) < count:
        picture = sample_picture(rng, held_out=True, people=1)
        if picture.style == "flat":
            out.append(picture)
    return out


def generate(pipeline: Pipeline, pictures: Sequence[Picture], steps: int, scale: float) -> Tensor:
    """A picture for every caption, ``B 3 H W`` in [0, 1], seed = its index."""
    return torch.cat([
        pipeline.generate(picture.caption, [index], steps=steps, scale=scale)
        for index, picture in enumerate(tqdm(pictures, desc="sampling", unit="picture"))
    ])


def hit_rates(images: Tensor, pictures: Sequence[Picture]) -> dict[str, float]:
    """Share of pictures in which the classifier sees what the caption tells, per attribute."""
    hits = prompt_hits(images, pictures)
    return {name: float(np.mean([h[name] for h in hits if name in h])) for name in sorted({n for h in hits for n in h})}


def chance(pictures: Sequence[Picture]) -> dict[str, float]:
    """What another caption's picture would reach: the mean agreement of two different captions."""
    asked = [told(p) for p in pictures]
    out = {}
    for name in sorted({n for a in asked for n in a}):
        values = [a[name] for a in asked if name in a]
        pairs = [(a, b) for i, a in enumerate(values) for j, b in enumerate(values) if i != j]
        out[name] = float(np.mean([a <= b if isinstance(a, set) else a == b for a, b in pairs]))
    return out


def attribute_table(pictures: Sequence[Picture], images: Tensor, originals: Tensor, reconstructed: Tensor) -> str:
    """Accuracy per attribute: generated, chance, and the classifier's own limit on drawn and reconstructed pictures."""
    columns = [hit_rates(x, pictures) for x in (images, originals, reconstructed)]
    luck = chance(pictures)
    rows = ["| told by the caption | generated | chance | drawn | drawn, autoencoded |", "|---|---|---|---|---|"]
    for name in luck:
        made, drawn_, through = (c[name] for c in columns)
        rows.append(f"| {name} | {made:.0%} | {luck[name]:.0%} | {drawn_:.0%} | {through:.0%} |")
    return "\n".join(rows)


def quality_table(images: Tensor, originals: Tensor, reconstructed: Tensor) -> str:
    """Reconstruction and sharpness."""
    mean = lambda values: float(np.mean(values))  # noqa: E731
    return "\n".join([
        "| measure | value |", "|---|---|",
        f"| autoencoder, PSNR on held-out pictures | {mean(psnr(reconstructed, originals)):.1f} dB |",
        f"| sharpness (mean absolute Laplacian), drawn | {mean(sharpness(originals)):.4f} |",
        f"| the same, through the autoencoder | {mean(sharpness(reconstructed)):.4f} |",
        f"| the same, generated | {mean(sharpness(images)):.4f} |",
    ])


def magicface_table(
    pipeline: Pipeline, cases: Sequence[Case], variants: Mapping[str, dict | None], scale: float,
    steps: int = 12,
) -> str:
    """Variants of MagicFace (the paper's Fig. 8) over cases, two pictures each, and the change from vanilla."""
    with tqdm(total=len(cases) * len(variants) * steps, desc="MagicFace", unit="step") as bar:
        rows, outcomes = magicface.measure(pipeline, cases, (1, 2), steps, variants, scale=scale, progress=bar.update)
    return f"{magicface.markdown(rows)}\n\n{magicface.change_table(outcomes)}"


def curves(side: int = 480) -> Image.Image:
    """The committed training logs: loss over time, one panel a training, both axes linear from 0."""
    logs = sorted(LOGS.glob("*.jsonl"))
    out = Image.new("RGB", (side * 2, (side // 2) * ((len(logs) + 1) // 2)), "white")
    draw = ImageDraw.Draw(out)
    for index, path in enumerate(logs):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        times, losses = [r["seconds"] for r in rows], [r["loss"] for r in rows]
        x0, y0, width, height = (index % 2) * side + 20, (index // 2) * (side // 2) + 30, side - 40, side // 2 - 60
        top = sorted(losses)[int(len(losses) * 0.98)]
        points = [
            (x0 + width * t / times[-1], y0 + height * (1 - min(v / top, 1)))
            for t, v in zip(times, losses, strict=True)
        ]
        draw.rectangle((x0, y0, x0 + width, y0 + height), outline="#cccccc")
        draw.line(points, fill="#2f62c9", width=2)
        draw.text((x0, y0 - 18), f"{path.stem}: loss, 0 to {top:.3g}; 0 to {times[-1] / 60:.0f} minutes, "
                                 f"{rows[-1]['step']} steps", fill="#333333")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="run.py miniature report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=48, help="held-out captions measured (48)")
    parser.add_argument("--people", type=int, default=24, help="held-out people for MagicFace's variants (24)")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of held-out people for two concepts (16)")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--scale", type=float, default=5.0, help="guidance scale (5)")
    args = parser.parse_args(argv)
    pipeline, pictures = miniature(), held_out_pictures(args.pictures)
    images = generate(pipeline, pictures, args.steps, args.scale)
    originals = drawn(pictures, pipeline.side)
    reconstructed = pipeline.decode(pipeline.encode(originals))
    shown = list(zip(pictures, images, strict=True))[:24]
    rows = [
        (" | ".join(p.caption.removeprefix("a picture of ") for p, _ in row), [Tile(to_image(x)) for _, x in row])
        for row in (shown[i : i + 6] for i in range(0, len(shown), 6))
    ]
    sheet("The miniature: captions never trained on, first seeds", rows).save(HERE / "samples.png")
    curves().save(HERE / "curves.png")
    singles = single_cases(args.people, pipeline.side, seed=5000)
    pairs = pair_cases(args.pairs, pipeline.side, seed=6000)
    text = (f"{len(pictures)} held-out people and captions, {pipeline.side} px, {args.steps} DDIM steps, guidance "
            f"{args.scale:g}.\n\n{attribute_table(pictures, images, originals, reconstructed)}\n\n"
            f"{quality_table(images, originals, reconstructed)}\n\n"
            f"MagicFace's variants, {args.people} held-out people, two pictures each, 12 steps, weight "
            f"{magicface.WEIGHT:g} unless told:\n\n"
            f"{magicface_table(pipeline, singles, magicface.VARIANTS, args.scale)}\n\n"
            f"Two concepts, {args.pairs} pairs of held-out people, likewise:\n\n"
            f"{magicface_table(pipeline, pairs, magicface.GROUP_VARIANTS, args.scale)}\n")
    (HERE / "report.md").write_text(text)
    print(text)
    return 0
