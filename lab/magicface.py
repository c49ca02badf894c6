"""``python run.py magicface``: MagicFace against vanilla, without ComfyUI and without a download.

``demo`` (also ``python run.py demo``, which goes on to show DIIR) compares pictures, ``benchmark`` costs.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from lab import diir
from lab.benchmarks.measure import Meter
from lab.evaluation.magicface import PLACED, WEIGHT, Outcome, Row, default_judge, run_case, summarise_variant
from lab.people import Case, pair_cases, single_cases
from lab.verbs import elsewhere, run_verb
from likeness.core.errors import bad_input
from likeness.core.magicface.record import Recorder
from likeness.core.magicface.request import MagicFaceRequest
from likeness.drawing.magicface import key_picture, label_map, recorded_tiles
from likeness.drawing.sheets import Tile, beside, sheet, to_image
from likeness.hosts.diffusers.checkpoints import load_checkpoint
from likeness.hosts.diffusers.miniature import miniature
from likeness.hosts.diffusers.pipeline import Pipeline

OUTPUT = Path(__file__).parents[1] / "output"
REPAIRED = 3  # people whose small faces DIIR repairs in the demo


@dataclass(frozen=True)
class Settings:
    """What the demo was asked for; written beside its results."""

    image: Path | None
    mask: Path | None
    word: str | None
    prompt: str | None
    checkpoint: Path | None
    seed: int
    steps: int
    scale: float
    alpha: float
    weight: float
    people: int
    pictures: int
    out: Path

    @property
    def seeds(self) -> list[int]:
        """One a picture."""
        return [self.seed + i for i in range(self.pictures)]

    @property
    def variants(self) -> dict[str, dict | None]:
        """What is compared."""
        return {"vanilla": None, f"MagicFace (alpha {self.alpha:g}, w {self.weight:g})": {"alpha": self.alpha}}

    @property
    def group_variants(self) -> dict[str, dict | None]:
        """What is compared with several people."""
        return {**self.variants, PLACED: {"alpha": self.alpha, "placed": True}}


def demo(argv: Sequence[str]) -> int:
    """Pictures, maps and a table of measured effects: vanilla and MagicFace with the same seeds.

    By default on the miniature with held-out drawn people: one concept and two, side by side; then small faces that
    DIIR repairs. --image takes a picture of your own, --checkpoint a local Stable Diffusion checkpoint.
    """
    settings = parse(argv)
    pipeline = load_checkpoint(settings.checkpoint) if settings.checkpoint else miniature()
    settings.out.mkdir(parents=True, exist_ok=True)
    table = own_picture(settings, pipeline) if settings.image else drawn_people(settings, pipeline)
    finish(settings, pipeline, table)
    return 0


VERBS = {
    "demo": (demo, "pictures, maps and a table of measured effects"),
    "prove": (elsewhere("lab.evaluation.magicface_proof"), "every variant on held-out people, with intervals"),
    "benchmark": (elsewhere("lab.benchmarks.magicface"), "time and memory against vanilla and naive attention"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_verb("magicface", "MagicFace: people from reference pictures, without training.", VERBS, argv)


def parse(argv: Sequence[str]) -> Settings:
    """Options to settings."""
    parser = argparse.ArgumentParser(prog="run.py magicface demo", description=inspect.getdoc(demo),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="your own reference picture")
    parser.add_argument("--mask", type=Path, help="white where the concept is in --image; without it the whole picture")
    parser.add_argument("--word", help="the concept's word in the prompt, e.g. woman; needed with --image")
    parser.add_argument("--prompt", help="what to draw; needed with --image")
    parser.add_argument("--checkpoint", type=Path, help="a local SD1.x, SD2.x or SDXL file or folder (with --image)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--scale", type=float, default=5.0, help="guidance scale (5)")
    parser.add_argument("--alpha", type=float, default=0.4, help="share of the steps with RSA, 0..1 (0.4)")
    parser.add_argument("--weight", type=float, help="weight of the reference inside its mask (3; miniature: 1)")
    parser.add_argument("--people", type=int, default=6, help="held-out people measured (6)")
    parser.add_argument("--pictures", type=int, default=2, help="pictures of each, by consecutive seeds (2)")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="folder for the results (output)")
    args = parser.parse_args(argv)
    if args.weight is None:
        args.weight = 3.0 if args.checkpoint else WEIGHT
    check(parser, args)
    return Settings(**vars(args))


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if args.image and not (args.word and args.prompt):
        parser.error("--image needs --word (the concept's word) and --prompt (a sentence with that word)")
    if not args.image and (args.mask or args.word or args.prompt):
        parser.error("--mask, --word and --prompt go with --image")
    if args.checkpoint and not args.image:
        parser.error("--checkpoint needs --image: the drawn people are the miniature's")
    if args.steps < 1 or args.people < 1 or args.pictures < 1:
        parser.error("--steps, --people and --pictures must be at least 1")
    if not 0 <= args.alpha <= 1 or args.weight < 0:
        parser.error("--alpha lies in 0..1, --weight is at least 0")


def drawn_people(settings: Settings, pipeline: Pipeline) -> str:
    """Held-out people of the drawn world: returns the table."""
    judge = default_judge()
    singles = single_cases(settings.people, pipeline.side)
    pairs = pair_cases(max(1, settings.people // 2), pipeline.side)
    recorders = {"one concept": Recorder(moments=(0.2, 0.6, 1.0)), "two concepts": Recorder(moments=(0.2, 0.6, 1.0))}
    groups = (("one concept", singles, settings.variants), ("two concepts", pairs, settings.group_variants))
    total = sum(len(cases) * len(variants) for _, cases, variants in groups) * settings.steps
    rows, outcomes = [], {}
    _, ours = settings.variants
    warm_up(pipeline)
    with tqdm(total=total, desc="sampling", unit="step") as bar:
        for concepts, cases, variants in groups:
            for name, variant in variants.items():
                with Meter() as meter:
                    done = [
                        run_case(
                            pipeline, case, variant, settings.seeds, settings.steps, judge, settings.weight,
                            settings.scale, bar.update, recorders[concepts] if name == ours and i == 0 else None,
                        )
                        for i, case in enumerate(cases)
                    ]
                outcomes[concepts, name] = done
                rows.append((concepts, summarise_variant(name, done), meter.peak_mib))
    write_drawn(settings, outcomes, singles, pairs, recorders)
    repaired = diir.show(pipeline, settings.out, min(REPAIRED, settings.people), settings.steps)
    return f"{drawn_table(rows)}\n\nThen DIIR, small faces of full-body pictures repaired (diir.png):\n\n{repaired}"


def warm_up(pipeline: Pipeline) -> None:
    """Two steps nobody times: kernels are chosen and memory is fetched at the first call."""
    pipeline.generate("a picture of a person", [0], steps=2)


def drawn_table(rows: Sequence[tuple[str, Row, float]]) -> str:
    """The table of measured effects."""
    lines = ["| concepts | variant | cases | identity similarity | faces found | colour distance | prompt accuracy "
             "| s a picture | peak MiB |", "|---|---|---|---|---|---|---|---|---|"]
    for concepts, r, peak in rows:
        lines.append(f"| {concepts} | {r.variant} | {r.identity.count} | {r.identity} | {r.found:.0%} "
                     f"| {r.colour or '-'} | {r.prompt} | {r.seconds:.2f} | {peak:.0f} |")
    return "\n".join(lines)


def write_drawn(
    settings: Settings, outcomes: dict, singles: Sequence[Case], pairs: Sequence[Case],
    recorders: dict[str, Recorder],
) -> None:
    """The contact sheet and the maps."""
    vanilla, ours = settings.variants
    rows = []
    for concepts, cases in (("one concept", singles), ("two concepts", pairs)):
        for i, case in enumerate(cases):
            before, after = (scored(name, outcomes[concepts, variant][i]) for name, variant in
                             (("vanilla", vanilla), ("MagicFace", ours)))
            key = Tile(beside([to_image(c.image * c.mask + 1 - c.mask) for c in case.people]), "reference")
            rows.append((case.prompt, [key, *before, *after]))
            if len(case.people) > 1:
                placed = scored("MagicFace", outcomes[concepts, PLACED][i])
                rows.append(("The same, each person given a part of the picture",
                             [strips(case), *EMPTY * len(before), *placed]))
    sheet("Held-out people: the reference, vanilla, MagicFace (same seeds)", rows).save(
        settings.out / "contact_sheet.png")
    maps = []
    for concepts, cases in (("one concept", singles), ("two concepts", pairs)):
        keys = beside([key_picture(c.image, c.mask) for c in cases[0].people])
        picture = to_image(outcomes[concepts, ours][0].images[0])
        maps.append((cases[0].prompt, [Tile(keys, "reference: colour = place"), Tile(picture, "MagicFace"),
                                       *recorded_tiles(recorders[concepts])]))
    sheet("What MagicFace did", maps).save(settings.out / "maps.png")


#: A place of the sheet with nothing in it.
EMPTY = [Tile(Image.new("RGB", (1, 1), "white"))]


def strips(case: Case) -> Tile:
    """The regions given to a case's people, in colours."""
    count = len(case.people)
    return Tile(label_map(torch.arange(1, count + 1).expand(count, count)), "regions given")


def scored(name: str, outcome: Outcome) -> list[Tile]:
    """A case's pictures with their identity similarity."""
    return [Tile(to_image(image), f"{name}, identity {score:.2f}")
            for image, score in zip(outcome.images, outcome.identity, strict=True)]


def own_picture(settings: Settings, pipeline: Pipeline) -> str:
    """The user's own picture, vanilla and MagicFace side by side: returns the table."""
    image = read_picture(settings.image, pipeline.side)
    mask = read_mask(settings.mask) if settings.mask else None
    recorder = Recorder(moments=(0.2, 0.6, 1.0))
    reference = pipeline.reference(image, settings.word, settings.prompt, mask, settings.weight)
    warm_up(pipeline)
    images, lines = {}, ["| variant | s a picture | peak MiB |", "|---|---|---|"]
    with tqdm(total=settings.steps * 2, desc="sampling", unit="step") as bar:
        for name, variant in settings.variants.items():
            request = MagicFaceRequest((reference,), recorder=recorder, **variant) if variant else None
            with Meter() as meter:
                images[name] = pipeline.generate(settings.prompt, settings.seeds, request, settings.steps,
                                                 settings.scale, callback=lambda *_: bar.update(1))
            lines.append(f"| {name} | {meter.seconds / len(settings.seeds):.2f} | {meter.peak_mib:.0f} |")
    tiles = [Tile(to_image(image), "reference")]
    tiles += [Tile(to_image(x), name.split(" (")[0]) for name, made in images.items() for x in made]
    sheet(f"{pipeline.name}: '{settings.word}'", [(settings.prompt, tiles)]).save(settings.out / "contact_sheet.png")
    key = Tile(key_picture(image, mask), "reference: colour = place")
    sheet("What MagicFace did", [(settings.prompt, [key, *recorded_tiles(recorder)])]).save(settings.out / "maps.png")
    return "\n".join(lines)


def read_picture(path: Path, side: int) -> Tensor:
    """The user's picture ``3 H W`` in [0, 1], scaled to the model's area, sides multiples of 64.

    Raises:
        LikenessError: there is no file, or it is no picture.
    """
    image = _open(path, "--image").convert("RGB")
    zoom = side / (image.width * image.height) ** 0.5
    width, height = (max(64, round(v * zoom / 64) * 64) for v in image.size)
    return _tensor(image.resize((width, height), Image.Resampling.LANCZOS)).permute(2, 0, 1)


def read_mask(path: Path) -> Tensor:
    """The user's mask ``H W`` in [0, 1]."""
    return _tensor(_open(path, "--mask").convert("L"))


def _open(path: Path, option: str) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, UnidentifiedImageError) as error:
        raise bad_input(option, f"{path}, which does not open as a picture ({error})", "a PNG, JPEG or WebP file",
                        "Check the path.") from error


def _tensor(image: Image.Image) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def finish(settings: Settings, pipeline: Pipeline, table: str) -> None:
    """Print and write the table and the settings."""
    kept = {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items() if k != "out"}
    head = f"{pipeline.name}, {pipeline.side} x {pipeline.side} pixels, DDIM {settings.steps} steps\n\n"
    (settings.out / "table.md").write_text(head + table + "\n", encoding="utf-8")
    (settings.out / "settings.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    print(f"\n{head}{table}\n\nwritten to {settings.out}, with table.md and settings.json")
