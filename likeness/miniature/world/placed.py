"""People anywhere in a picture, at any size: what a model must see to learn that a pose says where somebody is."""

from __future__ import annotations

import random
from dataclasses import replace

from .identity import Identity, sample_identity
from .spec import Picture, sample_figure, sample_picture

#: head heights, as shares of the side, of one, two and three people
HEADS = {1: (0.17, 0.6), 2: (0.17, 0.4), 3: (0.15, 0.28)}
#: least distance of two heads' middles, in mean head heights
APART = 1.05
PEOPLE, SHARES = (1, 2, 3), (0.5, 0.35, 0.15)


def sample_placed(
    rng: random.Random, people: int | None = None, held_out: bool = False, identity: Identity | None = None
) -> Picture:
    """A picture of one to three people off the usual places, left to right; captions do not tell who they are.

    Args:
        people: how many; drawn when None. held_out: see :func:`sample_picture`.
        identity: who the first is; drawn when None.
    """
    count = people or rng.choices(PEOPLE, SHARES)[0]
    heads = [rng.uniform(*HEADS[count]) for _ in range(count)]
    centres = _centres(rng, heads)
    shot = _shot(max(heads))
    figures = []
    for i, (centre, head) in enumerate(zip(centres, heads, strict=True)):
        who = identity if identity and i == 0 else sample_identity(rng, held_out)
        figures.append(replace(sample_figure(rng, shot, who, i, count), centre=centre, head=head, told=""))
    plain = sample_picture(rng, figures[0].identity, held_out)
    return replace(plain, figures=tuple(figures), shot=shot)


def _centres(rng: random.Random, heads: list[float]) -> list[tuple[float, float]]:
    """Head middles left to right, apart from each other and wholly in the picture."""
    while True:
        xs = sorted(rng.uniform(0.08, 0.92) for _ in heads)
        inside = all(0.42 * head <= x <= 1 - 0.42 * head for x, head in zip(xs, heads, strict=True))
        pairs = zip(xs, xs[1:], heads, heads[1:], strict=False)
        if inside and all(b - a >= APART * (h + k) / 2 for a, b, h, k in pairs):
            break
    base = rng.uniform(0.0, 1.0)
    ys = []
    for head in heads:
        low, high = 0.55 * head + 0.02, max(0.72 - 0.3 * head, 0.55 * head + 0.02)
        ys.append(low + (high - low) * min(max(base + rng.uniform(-0.15, 0.15), 0), 1))
    return list(zip(xs, ys, strict=True))


def _shot(head: float) -> str:
    """What a picture with heads of this size is called."""
    if head >= 0.42:
        return "portrait"
    return "half body" if head >= 0.26 else "full body"


def recast(rng: random.Random, picture: Picture, times: int, held_out: bool = False) -> list[Picture]:
    """The picture ``times`` times with other people in it; scene, clothes, places and caption stay."""
    out = []
    for _ in range(times):
        figures = []
        for figure in picture.figures:
            who = sample_identity(rng, held_out)
            while figure.word != "person" and who.gender != figure.word:
                who = sample_identity(rng, held_out)
            figures.append(replace(figure, identity=who, told=""))
        out.append(replace(picture, figures=tuple(figures)))
    return out
