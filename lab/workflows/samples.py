"""Draws the pictures that the templates for a user's own checkpoint load until the user chooses others.

At start-up the pack puts them into ComfyUI's input folder, so that no template opens with a missing picture. Run by
hand when one is to look otherwise::

    python run.py dev samples
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from lab.people import portrait
from likeness.hosts.comfy.samples import FOLDER
from likeness.miniature.world import numbered_identity
from likeness.miniature.world.render import render
from likeness.miniature.world.spec import Item, Picture

SIDE = 512
MAN, WOMAN, SCARF, KNIT, GROUP, PLACE = (
    f"likeness_{name}.png" for name in ("man", "woman", "scarf", "knit", "group", "place")
)


def person(number: int, **changes: object) -> Picture:
    """A held-out person's portrait in a studio."""
    identity = numbered_identity(number, held_out=True)
    return portrait(identity, random.Random(number), action="standing", **changes)


def group() -> Image.Image:
    """Three people whose faces are small, the man of :data:`MAN` in the middle."""
    people = ((20, 0.2, "dress", "red"), (8, 0.5, "suit", "blue"), (12, 0.8, "shirt", "green"))
    figures = tuple(
        person(number, centre=(x, 0.34), head=0.15, garment=garment, colour=dye).figures[0]
        for number, x, garment, dye in people
    )
    return drawn(Picture(figures, "full body", "beach", "flat", seed=3))


def knit() -> Image.Image:
    """Knitted wool: columns of stitches, each of two slanted strands."""
    fine, width, height = 4, 32, 20  # drawn so many times as large, for smooth edges
    image = Image.new("RGB", (fine * SIDE, fine * SIDE), "#7a2f3a")
    strand = Image.new("L", (fine * 44, fine * 44))
    ImageDraw.Draw(strand).ellipse((fine * 15, fine * 7, fine * 29, fine * 37), fill=255)
    left, right = (strand.rotate(angle, Image.Resampling.BICUBIC) for angle in (32, -32))
    for y in range(-2 * height, SIDE, height):
        for x in range(0, SIDE, width):
            for shift, shape, shade in ((-14, left, "#c25563"), (2, right, "#d3707b")):
                image.paste(shade, (fine * (x + shift), fine * y), shape)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def place() -> Image.Image:
    """An empty beach; where ComfyUI keeps a painted mask, in the alpha channel, there is room for one person."""
    image = drawn(Picture((), "portrait", "beach", "flat", seed=3))
    alpha = Image.new("L", image.size, 255)
    ImageDraw.Draw(alpha).ellipse((150, 90, 400, SIDE + 160), fill=0)
    image.putalpha(alpha)
    return image


def drawn(picture: Picture) -> Image.Image:
    """The picture at :data:`SIDE`."""
    return Image.fromarray(render(picture, SIDE))


SAMPLES: dict[str, Callable[[], Image.Image]] = {
    MAN: lambda: drawn(person(8, garment="shirt", colour="white")),
    WOMAN: lambda: drawn(person(20, garment="dress", colour="white")),
    SCARF: lambda: drawn(person(12, item=Item("scarf", "orange", "stripes"))),
    KNIT: knit,
    GROUP: group,
    PLACE: place,
}


def main(argv: Sequence[str] = ()) -> int:
    """``python run.py dev samples``."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in SAMPLES.items():
        draw().save(FOLDER / name, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
