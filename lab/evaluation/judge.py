"""One comparison: every metric of a protocol on every method's pictures, from whatever weights are there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lab.evaluation.cache import SUFFIXES, Cache
from lab.evaluation.face_sim import MINIATURE, FaceFinder, face_crop_of, face_models
from lab.evaluation.metrics import NO_FACE, Summary, summarise
from lab.evaluation.miniature_networks import MiniatureNetwork
from lab.evaluation.networks import ClipNetwork, DinoNetwork, InceptionNetwork, Network, TextNetwork
from lab.evaluation.protocol import Protocol, Shot, people_of, shots_of
from lab.evaluation.scores import (
    FaceRule,
    clip_score,
    face_scores,
    frechet_distance,
    frechet_spread,
    similarity_to_references,
)  # fmt: skip
from lab.evaluation.statistics import Comparison, adjust, compare, paired
from likeness.core.errors import LikenessError, bad_input

Values = dict[str, list[float]]
"""Group -> a number for each of its pictures."""


@dataclass
class Referees:
    """The networks, each made when it is first asked for.

    Attributes:
        weights: folder of the user's files.
        provider, pack: of the faces; ``miniature`` puts the miniature's referees in every place.
        cache: of what they made.
        device: where CLIP, DINO and Inception run.
    """

    weights: Path
    provider: str
    cache: Cache
    pack: str = ""
    device: str = "cpu"

    @functools.cached_property
    def drawn(self) -> bool:
        """Whether the pictures are the drawn world's."""
        return self.provider == MINIATURE

    @functools.cached_property
    def clip(self) -> TextNetwork:
        """Judges prompts, and likeness of pictures."""
        return MiniatureNetwork() if self.drawn else ClipNetwork(self.weights / "clip", self.device)

    @functools.cached_property
    def dino(self) -> Network:
        """Judges likeness of pictures."""
        return MiniatureNetwork() if self.drawn else DinoNetwork(self.weights / "dino", self.device)

    @functools.cached_property
    def inception(self) -> Network:
        """Makes the features of the FID."""
        return MiniatureNetwork() if self.drawn else InceptionNetwork(self.weights, self.device)

    @functools.cached_property
    def faces(self) -> FaceFinder:
        """Finds and embeds faces."""
        return FaceFinder(face_models(self.provider, self.weights, self.pack), self.cache)


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
        table: method -> metric -> mean and interval.
        comparisons: with the baseline.
        found: method -> share of pictures in which a face was found.
        absent: metric -> why it could not be measured.
        counts: method -> pictures.
    """

    protocol: Protocol
    table: dict[str, dict[str, Summary]]
    comparisons: list[Comparison] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def evaluate(protocol: Protocol, referees: Referees) -> Result:
    """Measure all; a metric whose weights or inputs are absent says so and the rest is done.

    Raises:
        LikenessError: folders or names are wrong: no metric could be right.
    """
    if not protocol.methods:
        raise bad_input("evaluation: --pictures", "no method", "NAME=FOLDER", "Name at least one folder of pictures.")
    people = people_of(protocol)
    shots = {method: shots_of(protocol, method) for method in protocol.methods}
    result = Result(protocol, {method: {} for method in shots}, counts={m: len(s) for m, s in shots.items()})
    values: dict[tuple[str, str], Values] = {}
    for metric in protocol.metrics:
        measure = (lambda part, m=metric: distance(m, part, protocol, referees)) if metric.startswith("fid") else None
        try:
            for method, part in shots.items():
                if measure:
                    result.table[method][metric] = measure(part)
                    continue
                values[method, metric] = picture_values(metric, part, people, protocol, referees)
                result.table[method][metric] = summarise(values[method, metric])
        except (LikenessError, ValueError) as error:
            result.absent[metric] = str(error)
    result.found.update(_found(shots, result, referees))
    result.comparisons.extend(_comparisons(protocol, values))
    return result


def _found(shots: dict[str, list[Shot]], result: Result, referees: Referees) -> dict[str, float]:
    if not any({"face_sim", "i_pre"} & set(row) for row in result.table.values()):
        return {}
    return {m: sum(len(referees.faces(s.file).boxes) > 0 for s in part) / len(part) for m, part in shots.items()}


def _comparisons(protocol: Protocol, values: dict[tuple[str, str], Values]) -> list[Comparison]:
    baseline, out = protocol.baseline or next(iter(protocol.methods)), []
    if baseline not in protocol.methods:
        raise bad_input("evaluation: baseline", baseline, ", ".join(protocol.methods), "Name one of the methods.")
    for (method, metric), ours in values.items():
        theirs = values.get((baseline, metric))
        differences = paired(ours, theirs) if theirs and method != baseline else []
        if differences:
            out.append(compare(method, metric, differences))
    return adjust(out)


# --- metrics of single pictures ---------------------------------------------------------------------------------------


def picture_values(
    metric: str, shots: Sequence[Shot], people: dict[str, list[Path]], protocol: Protocol, referees: Referees
) -> Values:
    """A metric of every picture, by group; pictures that it leaves out are missing."""
    measure: dict[str, Callable[[], list[float | None]]] = {
        "clip_t": lambda: _texts(shots, referees).tolist(),
        "t_sim": lambda: (_texts(shots, referees) if referees.drawn else clip_score(_texts(shots, referees))).tolist(),
        "clip_i": lambda: _likeness(referees.clip, shots, people, referees.cache),
        "dino": lambda: _likeness(referees.dino, shots, people, referees.cache),
        "face_sim": lambda: _faces(protocol.rule, shots, people, referees),
        "i_pre": lambda: _faces(FaceRule(no_face=NO_FACE), shots, people, referees),
    }
    values: Values = {shot.group: [] for shot in shots}
    for shot, value in zip(shots, measure[metric](), strict=True):
        if value is not None and value == value:
            values[shot.group].append(value)
    return values


def _texts(shots: Sequence[Shot], referees: Referees) -> Tensor:
    nameless = [shot.file.name for shot in shots if shot.prompt is None]
    if nameless:
        raise bad_input("evaluation: prompts", f"{len(nameless)} pictures without one ({nameless[0]}, ...)",
                        "a prompt for each", "Give --prompts and number the pictures, or put a .txt beside each.")
    features = referees.cache.features(referees.clip, [shot.file for shot in shots])
    return referees.clip.match(features, [shot.prompt for shot in shots])


def _likeness(network: Network, shots: Sequence[Shot], people: dict[str, list[Path]], cache: Cache) -> list[float]:
    features = cache.features(network, [shot.file for shot in shots])
    known = {name: cache.features(network, files) for name, files in people.items()}
    return [
        float(similarity_to_references(row[None], torch.cat([known[name] for name in shot.people]))[0])
        for row, shot in zip(features, shots, strict=True)
    ]


def _faces(
    rule: FaceRule, shots: Sequence[Shot], people: dict[str, list[Path]], referees: Referees
) -> list[float | None]:
    needed = dict.fromkeys(name for shot in shots for name in shot.people)
    known = {name: referees.faces.of_person(people[name]) for name in needed}
    return [_face(rule, shot, known, referees.faces) for shot in shots]


def _face(rule: FaceRule, shot: Shot, known: dict[str, Tensor], finder: FaceFinder) -> float | None:
    found = finder(shot.file)
    if rule.overlap is not None and len(shot.people) > 1 and shot.regions is None:
        raise bad_input("evaluation: regions", f"none for {shot.group}/{shot.file.name}",
                        "a designated box a person: the rule asks for an overlap with it", "Give --regions.")
    (width, height), regions = found.size, None
    if shot.regions is not None:
        regions = [(x0 * width, y0 * height, x1 * width, y1 * height) for x0, y0, x1, y1 in shot.regions]
    boxes = [tuple(box) for box in found.boxes.tolist()]
    scores = face_scores(rule, boxes, found.vectors, [known[name] for name in shot.people], regions)
    counted = [score for score in scores if score is not None]
    return sum(counted) / len(counted) if counted else None


# --- the FID of a set -------------------------------------------------------------------------------------------------


def distance(metric: str, shots: Sequence[Shot], protocol: Protocol, referees: Referees) -> Summary:
    """The FID of a method's pictures with the real ones; its interval is 1.96 standard deviations over groups."""
    real = sorted(f for f in (protocol.real or protocol.references).rglob("*") if f.suffix.lower() in SUFFIXES)
    files, view, load, finder = [shot.file for shot in shots], "", None, None
    if metric == "fid_face":
        finder = referees.faces
        real, files = ([f for f in part if len(finder(f).boxes)] for part in (real, files))
        view, load = f"-{finder.key}", lambda file: face_crop_of(file, finder(file))
    if min(len(real), len(files)) < 2:
        raise ValueError(f"FID: got {len(real)} real and {len(files)} generated pictures; expected at least 2 of each")
    known = referees.cache.features(referees.inception, real, view, load)
    made = referees.cache.features(referees.inception, files, view, load)
    group_of = {shot.file: shot.group for shot in shots}
    names = [group_of[file] for file in files]
    groups = [made[[n == name for n in names]] for name in dict.fromkeys(names)]
    mean = frechet_distance(made, known)
    spread = frechet_spread(groups, known) if len(groups) > 1 and min(map(len, groups)) > 1 else float("nan")
    return Summary(mean, mean - 1.96 * spread, mean + 1.96 * spread, len(groups))
