"""PersonaMagic measured on the miniature: the paper's Tables 1 and 2 as trends, Fig. 2, and Fig. 4/9's weights.

``python run.py persona prove`` trains every variant on held-out people, draws held-out prompts with the same seeds, and
lets the referees judge. Each person and variant is a job of its own whose result is a file: an interrupted run goes on
where it stopped, and the tables are printed from whatever is there.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from lab.evaluation.directions import Direction, direction, save, unshown
from lab.evaluation.drawn import prompt_accuracy
from lab.evaluation.inversion import InversionTrainer
from lab.evaluation.metrics import IdentityJudge, Summary, detection_rate, summarise
from lab.people import Person, draw_person
from lab.persona_defaults import miniature_request, persona_miniature
from likeness.core.persona.persona import Persona
from likeness.core.persona.stages import IouCurve, stages_from_iou
from likeness.core.persona.tandem import TandemConfig, causal_attention, marked, tandem_shares
from likeness.core.persona.text import Layout, lay_out, splice
from likeness.drawing.sheets import grid
from likeness.hosts.diffusers.persona import image_width, prepare_photo
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.miniature.faces import MiniatureDetector, MiniatureEmbedder
from likeness.miniature.world import Picture, sample_picture
from likeness.training.persona.photos import Photo
from likeness.training.persona.request import PersonaTraining
from likeness.training.persona.trainer import PersonaTrainer, train

log = logging.getLogger("likeness")

PLACEHOLDER = "S*"
WHOLE = (0, 999)
NO_TANDEM = TandemConfig(weight=0.0)

#: Table 1. None is no persona at all: the prompt's plain word.
VARIANTS: dict[str, dict | None] = {
    "plain word": None,
    "textual inversion": {"inversion": True},
    "vanilla mapper": {"low": 0, "high": 999, "tandem": NO_TANDEM},
    "+ stage regulation": {"tandem": NO_TANDEM},
    "+ tandem equilibrium": {"low": 0, "high": 999},
    "full": {},
}
#: Table 2: (lambda1, lambda2).
LAMBDAS = ((0.5, 1.0), (0.6, 1.0), (0.7, 1.0), (0.8, 1.0), (0.7, 0.9), (0.7, 0.8))


@dataclass(frozen=True)
class Grid:
    """What is measured. Saved beside the results; a folder belongs to one grid."""

    people: int = 8
    prompts: int = 8
    seeds: int = 2
    steps: int = 150
    warmup: int = 60
    play_steps: int = 25
    guidance: float = 5.0


@dataclass(frozen=True)
class Scores:
    """One job: per picture identity similarity (-1: no face) and share of told attributes seen; and more.

    ``share``: mean of the persona's share of attention, phi(Att_S), in the text encoder (0.5 is balance).
    """

    identity: list[float]
    prompt: list[float]
    share: float | None
    stages: tuple[int, int] | None
    train_seconds: float
    play_seconds: float


def prompt_pictures(person: Person, count: int) -> list[Picture]:
    """Held-out prompts, the same for every person: accessory-scene pairs that were never drawn for training."""
    pictures = []
    for i in range(count):
        rng = random.Random(f"persona prompt {i}")
        shot = ("portrait", "portrait", "half body")[i % 3]
        picture = sample_picture(rng, person.identity, held_out=True, shot=shot, people=1)
        figure = replace(picture.figures[0], word="person", told="")
        pictures.append(replace(picture, figures=(figure,), style="flat"))
    return pictures


def persona_prompt(picture: Picture) -> str:
    """The caption with the placeholder instead of the person."""
    return picture.caption.replace("a person", f"a {PLACEHOLDER}", 1)


# --- one job ----------------------------------------------------------------------------------------------------------


def request_for(settings: Mapping, grid: Grid, photo: Photo, seed: int) -> PersonaTraining:
    """The training request of a variant."""
    common = {"steps": grid.steps, "warmup": grid.warmup, "seed": seed, "image_width": image_width(photo)}
    if settings.get("inversion"):
        return miniature_request(**{**common, "tokens": 1, "image_width": 0, "low": 0, "high": 999}, tandem=NO_TANDEM)
    return miniature_request(**{**common, **settings})


def train_variant(pipeline: Pipeline, photo: Photo, settings: Mapping, grid: Grid, seed: int) -> Persona:
    """Train one variant on one photo."""
    request = request_for(settings, grid, photo, seed)
    if settings.get("inversion"):
        whole = replace(photo, mask=torch.ones_like(photo.mask))
        return train(InversionTrainer(request, pipeline, [whole]))
    return train(PersonaTrainer(request, pipeline, [photo]))


def draw(pipeline: Pipeline, persona: Persona | None, pictures: Sequence[Picture], grid: Grid) -> list[Tensor]:
    """Per prompt the pictures of all seeds, ``S 3 H W`` in [0, 1]; without a persona of the plain captions."""
    personas = {} if persona is None else {PLACEHOLDER: persona}
    return [
        pipeline.generate(
            persona_prompt(picture) if personas else picture.caption, [1000 * i + s for s in range(grid.seeds)],
            steps=grid.play_steps, scale=grid.guidance, personas=personas,
        )
        for i, picture in enumerate(pictures)
    ]  # fmt: skip


@torch.no_grad()
def attention_share(pipeline: Pipeline, persona: Persona, pictures: Sequence[Picture]) -> float:
    """Mean phi(Att_S) over prompts and three times of the dynamic stage: 0.5 is balance, 1 all for the persona."""
    low, high = persona.stages.low, persona.stages.high
    times = torch.tensor([low + (high - low) * part // 4 for part in (1, 2, 3)])
    shares = []
    for picture in pictures:
        tokenizer = pipeline.tokenizer
        layout = lay_out(persona_prompt(picture), {PLACEHOLDER: persona.tokens}, tokenizer, tokenizer.bos)
        shares += _shares(pipeline, persona, layout, times)
    return sum(shares) / len(shares)


def _shares(pipeline: Pipeline, persona: Persona, layout: Layout, times: Tensor) -> list[float]:
    slots = layout.slots[PLACEHOLDER]
    words = persona.speaker(times.to(pipeline.device), slots).words
    embeddings = pipeline.text.embed(layout.ids.expand(len(times), -1).to(pipeline.device))
    attention = causal_attention(*pipeline.text.last_queries_keys(splice(embeddings, slots, words)))
    marks = (marked([part] * len(times), attention.shape[-1]).to(attention.device) for part in (slots, layout.words))
    return tandem_shares(attention, *marks, TandemConfig())[0].tolist()


class Proof:
    """Runs jobs into a folder.

    Args:
        folder: results; must belong to the same grid.
        grid: what is measured.
    """

    def __init__(self, folder: Path, grid: Grid) -> None:
        self.folder, self.grid = folder, grid
        folder.mkdir(parents=True, exist_ok=True)
        record = folder / "grid.json"
        if record.is_file() and json.loads(record.read_text()) != asdict(grid):
            raise SystemExit(f"{folder} holds another grid: {record.read_text()}; choose another --out")
        record.write_text(json.dumps(asdict(grid)))
        self.pipeline = persona_miniature()
        self.judge = IdentityJudge(MiniatureDetector(), MiniatureEmbedder())

    def done(self, variant: str, number: int) -> bool:
        """Whether a job's scores are there."""
        return (self.folder / _slug(variant) / f"{number}.json").is_file()

    def job(self, variant: str, settings: Mapping | None, number: int) -> Scores:
        """Scores of one variant and person, from its file or made now."""
        path = self.folder / _slug(variant) / f"{number}.json"
        if path.is_file():
            return Scores(**json.loads(path.read_text()))
        scores, rows = self._measure(settings, number)
        path.parent.mkdir(exist_ok=True)
        grid([list(chain.from_iterable(rows))]).save(path.with_suffix(".png"))
        path.write_text(json.dumps(asdict(scores)))
        log.info(
            "%s, person %d: identity %.3f, prompt %.3f (%.0f s + %.0f s)", variant, number, _mean(scores.identity),
            _mean(scores.prompt), scores.train_seconds, scores.play_seconds,
        )  # fmt: skip
        return scores

    def _measure(self, settings: Mapping | None, number: int) -> tuple[Scores, list[list[Tensor]]]:
        person, pictures = self.person(number)
        started = time.perf_counter()
        photo = prepare_photo(self.pipeline, person.image, person.mask, self.pipeline.side)
        persona = None if settings is None else train_variant(self.pipeline, photo, settings, self.grid, number)
        trained = time.perf_counter()
        made = draw(self.pipeline, persona, pictures, self.grid)
        played = time.perf_counter()
        reference = self.judge.embed(person.image, [person.box])[0]
        identity = [s for images in made for s in self.judge.similarity(images, reference)]
        pairs = zip(made, pictures, strict=True)
        prompt = [s for images, asked in pairs for s in prompt_accuracy(images, [asked] * len(images))]
        share = None if persona is None else attention_share(self.pipeline, persona, pictures)
        stages = None if persona is None else (persona.stages.low, persona.stages.high)
        scores = Scores(identity, prompt, share, stages, trained - started, played - trained)
        return scores, [[person.image], *(list(images) for images in made)]

    def person(self, number: int) -> tuple[Person, list[Picture]]:
        """Held-out person and prompts."""
        person = draw_person(number, self.pipeline.side)
        return person, prompt_pictures(person, self.grid.prompts)

    def curve(self, number: int) -> IouCurve:
        """IoU curve of one person after the warm-up (Fig. 2), from its file or measured now."""
        path = self.folder / "curves" / f"{number}.json"
        if path.is_file():
            return IouCurve(**{k: tuple(v) for k, v in json.loads(path.read_text()).items()})
        person, _ = self.person(number)
        photo = prepare_photo(self.pipeline, person.image, person.mask, self.pipeline.side)
        trainer = PersonaTrainer(request_for({"stages": "iou"}, self.grid, photo, number), self.pipeline, [photo])
        with self.pipeline.open() as denoise:
            trainer.partition(denoise)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(asdict(trainer.curve)))
        return trainer.curve

    def lambda_job(self, lambdas: tuple[float, float], number: int) -> Scores:
        """Scores of one pair of thresholds and person: trained on the stage their curve gives, the miniature's own
        where it gives none. Thresholds that give the same stage share one training, also with Table 1."""
        usual = miniature_request()
        known = {WHOLE: "+ tandem equilibrium", (usual.low, usual.high): "full"}
        bounds = WHOLE
        if lambdas != (0.5, 1.0):
            stages, _ = stages_from_iou(self.curve(number), *lambdas, fallback=(usual.low, usual.high))
            bounds = (stages.low, stages.high)
        low, high = bounds
        return self.job(known.get(bounds, f"stage {low} to {high}"), {"low": low, "high": high}, number)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name).strip("_")


# --- tables -----------------------------------------------------------------------------------------------------------


def table(rows: Mapping[str, Sequence[Scores]]) -> str:
    """Markdown: mean and 95% interval over people of prompt accuracy and identity, faces found, attention share."""
    lines = [
        "| variant | prompt accuracy | identity similarity | faces found | attention share | people |",
        "|---|---|---|---|---|---|",
    ]
    for name, scores in rows.items():
        if not scores:
            continue
        prompt, identity = (_over_people([getattr(s, k) for s in scores]) for k in ("prompt", "identity"))
        found = _mean([detection_rate(s.identity) for s in scores])
        shares = [s.share for s in scores if s.share is not None]
        share = f"{_mean(shares):.3f}" if shares else "-"
        lines.append(f"| {name} | {prompt} | {identity} | {found:.0%} | {share} | {len(scores)} |")
    return "\n".join(lines)


def _over_people(values: Sequence[Sequence[float]]) -> Summary:
    return summarise(dict(enumerate(values)))


def run(proof: Proof, tables: Sequence[str], people: Sequence[int]) -> str:
    """All jobs of the wanted tables, person by person so that an early stop leaves whole rows; the report."""
    first: dict[str, list[Scores]] = {name: [] for name in VARIANTS}
    second: dict[str, list[Scores]] = {f"lambda {a}, {b}": [] for a, b in LAMBDAS}
    curves = []
    for number in people:
        if "1" in tables:
            for name, settings in VARIANTS.items():
                first[name].append(proof.job(name, settings, number))
        if "2" in tables:
            for pair in LAMBDAS:
                second[f"lambda {pair[0]}, {pair[1]}"].append(proof.lambda_job(pair, number))
        if "curve" in tables:
            curves.append(proof.curve(number))
    parts = [f"Grid: {asdict(proof.grid)}"]
    parts += [f"### Table 1\n\n{table(first)}"] if "1" in tables else []
    parts += [f"### Table 2\n\n{table(second)}"] if "2" in tables else []
    parts += [f"### IoU of attention and mask\n\n{curve_table(curves)}"] if curves else []
    return "\n\n".join(parts) + "\n"


def directions(proof: Proof) -> list[Direction]:
    """What PersonaMagic's paper says of its parts (Table 1), and what is seen here; of what has been measured."""
    def less(a: str, b: str, what: str) -> list[float]:
        numbers = [n for n in range(1, proof.grid.people + 1) if proof.done(a, n) and proof.done(b, n)]
        first, second = ([_mean(getattr(proof.job(v, VARIANTS[v], n), what)) for n in numbers] for v in (a, b))
        return [x - y for x, y in zip(first, second, strict=True)]

    claims = (
        ("a series of embeddings keeps identity better than one", "vanilla mapper", "textual inversion", "identity"),
        ("and costs some of the prompt", "textual inversion", "vanilla mapper", "prompt"),
        ("stage regulation keeps the prompt better", "+ stage regulation", "vanilla mapper", "prompt"),
        ("stage regulation keeps identity better", "+ stage regulation", "vanilla mapper", "identity"),
        ("Tandem Equilibrium keeps the prompt better", "+ tandem equilibrium", "vanilla mapper", "prompt"),
        ("both together keep the prompt better than either (stages)", "full", "+ stage regulation", "prompt"),
        ("both together keep the prompt better than either (Equilibrium)", "full", "+ tandem equilibrium", "prompt"),
        ("both together keep identity better than Equilibrium alone", "full", "+ tandem equilibrium", "identity"),
    )
    measured = [
        direction("Table 1", claim, f"{what}, {a} less {b}", differences)
        for claim, a, b, what in claims if len(differences := less(a, b, what)) > 1
    ]
    plugin = unshown("Table 3", "lifts PhotoMaker and IP-Adapter as a plug-in", "they are trained for Stable Diffusion")
    return [*measured, unshown("Fig. 8", "on the Pareto front of seven methods", "the others need weights"), plugin]


def curve_table(curves: Sequence[IouCurve]) -> str:
    """Mean IoU over people at every hundredth timestep (Fig. 2)."""
    rows = [
        f"| {t} | {_mean([c.iou[i] for c in curves]):.3f} | {_mean([c.smooth[i] for c in curves]):.3f} |"
        for i, t in enumerate(curves[0].timesteps)
        if i % 5 == 0
    ]
    return "\n".join(["| timestep | IoU | calibrated |", "|---|---|---|", *rows])


def main(argv: Sequence[str]) -> int:
    """The command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="run.py persona prove", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", default="output/prove/persona", help="folder of results; a second run goes on in it")
    parser.add_argument("--tables", default="1,curve", help="of 1, 2, curve (default 1,curve)")
    parser.add_argument("--people", type=int, default=Grid.people, help=f"held-out people (default {Grid.people})")
    parser.add_argument("--prompts", type=int, default=Grid.prompts, help="held-out prompts per person (default 8)")
    parser.add_argument("--seeds", type=int, default=Grid.seeds, help="pictures per prompt (default 2)")
    parser.add_argument("--steps", type=int, default=Grid.steps, help=f"training steps (default {Grid.steps})")
    parser.add_argument("--full", action="store_true", help="both tables, 16 people, 1000 steps, 200 warm-up steps")
    options = parser.parse_args(list(argv))
    grid = Grid(options.people, options.prompts, options.seeds, options.steps)
    if options.full:
        grid = replace(grid, people=16, steps=1000, warmup=200)
        options.tables = "1,2,curve"
    proof = Proof(Path(options.out), grid)
    report = run(proof, options.tables.split(","), range(1, grid.people + 1))
    (proof.folder / "tables.md").write_text(report)
    save(proof.folder, directions(proof))
    log.info("%s", report)
    return 0
