"""What DIIR does, measured on held-out people of the drawn world: the cases, the judge, the sections of the proof."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.evaluation.drawn import attributes_seen
from lab.evaluation.magicface import WEIGHT
from lab.people import Person, reference_person
from likeness.core.diir.geometry import cut
from likeness.core.diir.paste import Patch, feathered, paste
from likeness.core.diir.request import DiirRequest
from likeness.core.magicface.request import MagicFaceRequest
from likeness.faces.find import find_faces
from likeness.faces.geometry import intersection_over_union, tilt, turned_box
from likeness.faces.interface import Face, embed_faces, largest_face
from likeness.hosts.diffusers.diir import PROMPT, FaceTarget, Repair, crop_of, head_in_crop, repair_faces, target_of
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.miniature.faces import miniature_models
from likeness.miniature.world import Picture, sample_identity, sample_picture
from likeness.miniature.world.render import ground_truth, render
from likeness.miniature.world.spec import STYLES

DRAFTS = ("MagicFace", "vanilla")
HIDING = ("glasses", "sunglasses")  # accessories that hide what makes a person
TRIES = 6  # seeds for a draft in which a face is found
NEAR = 0.3  # least overlap (IoU) of a found face with the place it is looked for
BLURRED = 3  # drawn pictures lose this factor of resolution, and with it their small faces

#: variant -> how, and whether with the person; "autoencoder" is the crop encoded and decoded, nothing else
VARIANTS: dict[str, tuple[DiirRequest | None, bool]] = {
    "autoencoder": (None, False),
    "fast, strength .5": (DiirRequest(mode="fast", fast_strength=0.5), True),
    "fast, strength .75": (DiirRequest(mode="fast"), True),
    "default": (DiirRequest(), True),
    "colours kept (Eq. 5)": (DiirRequest(keep_style="latents"), True),
    "paper mode": (DiirRequest(keep_style="paper"), True),
    "no identity": (DiirRequest(), False),
}
STYLED = {
    "default, style not told": (DiirRequest(), False),
    "default, style told": (DiirRequest(), True),
    "colours kept, style not told": (DiirRequest(keep_style="latents"), False),
    "paper mode, style not told": (DiirRequest(keep_style="paper"), False),
}
ANGLES = (0, 30, 60, 180)


@dataclass(frozen=True)
class Lab:
    """The model and the referees of a measurement."""

    pipeline: Pipeline

    def __post_init__(self) -> None:
        models = miniature_models()
        object.__setattr__(self, "models", models)
        object.__setattr__(self, "embedder", models.make_embedder())

    def target(self, person: Person, style: str = "flat") -> FaceTarget:
        """What a face needs to become ``person``; the style is told by the crop's prompt."""
        prompt = PROMPT.replace("a picture of", STYLES[style])
        return target_of(self.pipeline, [person.image], person.word, [person.mask], prompt, WEIGHT)

    def stranger(self, person: Person) -> FaceTarget:
        """The same prompt without the person."""
        return FaceTarget(PROMPT.format(word=person.word))

    def vector(self, image: Tensor, face: Face) -> Tensor:
        """Identity vector ``D`` of a face, turned upright."""
        return embed_faces(self.embedder, image, [face])[0]

    def near(self, image: Tensor, face: Face) -> Face | None:
        """The face found where ``face`` is."""
        found = self.models.detector.detect(image[None])[0]
        near = [f for f in found if intersection_over_union(f.box, face.box) >= NEAR]
        return max(near, key=lambda f: f.score, default=None)

    def similarity(self, image: Tensor, face: Face, person: Person) -> float:
        """Cosine of ``person`` with the face found at a place, or with the place itself where none is found."""
        reference = self.vector(person.image, Face(person.box, 1.0))
        return float(self.vector(image, self.near(image, face) or face) @ reference)


# --- drafts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draft:
    """A picture with a small face.

    Attributes:
        image: ``3 H W`` in [0, 1], of 8 bits. face: as found. person: who was asked for. prompt: of the picture.
        seed: with which a face was found.
    """

    image: Tensor
    face: Face
    person: Person
    picture: Picture
    seed: int


def full_body(number: int, side: int, style: str = "flat") -> tuple[Person, Picture]:
    """Held-out person ``number`` with a full-body prompt: eyes open and in sight."""
    rng = random.Random(f"diir {number}")
    identity = sample_identity(rng, held_out=True)
    person = reference_person(identity, rng, side)
    while True:
        picture = sample_picture(rng, identity, held_out=True, shot="full body")
        figure = replace(picture.figures[0], word=person.word, told="", expression="")
        if figure.item is None or figure.item.kind not in HIDING:
            return person, replace(picture, figures=(figure,), style=style)


def make_draft(lab: Lab, number: int, kind: str, style: str = "flat", steps: int = 30) -> Draft | None:
    """The first of some seeds in which a face is found; None: in none of them."""
    person, picture = full_body(number, lab.pipeline.side, style)
    request = None
    if kind == "MagicFace":
        reference = lab.pipeline.reference(person.image, person.word, picture.caption, person.mask, WEIGHT)
        request = MagicFaceRequest((reference,))
    for seed in range(1, TRIES + 1):
        image = eight_bit(lab.pipeline.generate(picture.caption, [seed], request, steps)[0])
        face = largest_face(lab.models.detector.detect(image[None])[0])
        if face is not None:
            return Draft(image, face, person, picture, seed)
    return None


def eight_bit(image: Tensor) -> Tensor:
    """Rounded as a file would hold it."""
    return (image * 255).round() / 255


def blurred(image: Tensor, factor: int = BLURRED) -> Tensor:
    """``3 H W`` with its resolution divided by ``factor``: what a small face of a large model looks like."""
    small = F.interpolate(image[None], scale_factor=1 / factor, mode="bilinear", antialias=True)
    return eight_bit(F.interpolate(small, image.shape[-2:], mode="bicubic").clamp(0, 1)[0])


# --- what is told of a repair -----------------------------------------------------------------------------------------


def repaired(lab: Lab, draft: Draft, request: DiirRequest | None, target: FaceTarget) -> tuple[Tensor, Tensor, Tensor]:
    """The picture, where it changed, and the crop after."""
    if request is not None:
        made = repair_faces(lab.pipeline, [draft.image], [Repair(0, draft.face, target)], request)
        return made.pictures[0], made.changed[0], made.after[0]
    request = DiirRequest()
    side, crop = lab.pipeline.side, crop_of(draft.face, request)
    after = lab.pipeline.decode(lab.pipeline.encode(cut(draft.image, crop, side)[None]))[0]
    mask = feathered(head_in_crop(draft.face, request, side), request.feather)
    return *paste(draft.image, [Patch(crop, after, mask)]), after


def outcome(lab: Lab, draft: Draft, picture: Tensor, changed: Tensor) -> dict:
    """What the referees say of a picture."""
    return {
        "similarity": lab.similarity(picture, draft.face, draft.person),
        "found": lab.near(picture, draft.face) is not None,
        "identical outside": bool(torch.equal(picture[:, changed == 0], draft.image[:, changed == 0])),
        "seam": seam(draft.image, picture, changed),
    }


def seam(before: Tensor, after: Tensor, changed: Tensor) -> float | None:
    """Mean gradient after over before where the mask fades out (0 to a half); 1: no edge has come. None: no place."""
    ring = (changed > 0) & (changed < 0.5)
    if not bool(ring.any()):
        return None
    old, new = (_gradient(image)[ring].mean() for image in (before, after))
    return float(new / old.clamp(min=1e-4))


def _gradient(image: Tensor) -> Tensor:
    x = F.pad(image, (0, 1, 0, 1), mode="replicate")
    return ((x[:, :-1, 1:] - image).abs() + (x[:, 1:, :-1] - image).abs()).mean(0)


# --- sections: each yields a name and what makes its record -----------------------------------------------------------

Work = Callable[[], dict]


def people_section(lab: Lab, number: int, kind: str, draft: Draft, keep: Callable) -> Iterator[tuple[str, Work]]:
    """One person's draft, as it is and repaired in every way."""
    target, stranger = lab.target(draft.person), lab.stranger(draft.person)

    def before() -> dict:
        keep("reference", draft.person.image)
        keep("draft", draft.image)
        keep("crop", cut(draft.image, crop_of(draft.face, DiirRequest()), lab.pipeline.side))
        height = draft.face.size[1]
        return outcome(lab, draft, draft.image, torch.zeros(draft.image.shape[-2:])) | {"height": height}

    yield "before", before
    for name, (request, identified) in VARIANTS.items():

        def variant(name: str = name, request: DiirRequest | None = request, who: bool = identified) -> dict:
            picture, changed, after = repaired(lab, draft, request, target if who else stranger)
            keep(name, after)
            keep(f"picture, {name}", picture)
            return outcome(lab, draft, picture, changed)

        yield name, variant


def style_section(lab: Lab, draft: Draft, style: str, keep: Callable) -> Iterator[tuple[str, Work]]:
    """Whether a drawn style outlasts the repair: what the classifier sees in the crop."""
    crop = cut(draft.image, crop_of(draft.face, DiirRequest()), lab.pipeline.side)

    def before() -> dict:
        keep("draft", draft.image)
        keep("crop", crop)
        return {"style": _style(crop) == style, "similarity": lab.similarity(draft.image, draft.face, draft.person)}

    yield "before", before
    targets = {told: lab.target(draft.person, style if told else "flat") for told in (False, True)}
    for name, (request, told) in STYLED.items():

        def variant(name: str = name, request: DiirRequest = request, told: bool = told) -> dict:
            picture, _, after = repaired(lab, draft, request, targets[told])
            keep(name, after)
            return {"style": _style(after) == style,
                    "similarity": lab.similarity(picture, draft.face, draft.person)}

        yield name, variant


def _style(image: Tensor) -> object:
    return attributes_seen(image[None])[0]["style"]


def group(number: int, side: int) -> tuple[Tensor, list[Face], list[Person]]:
    """A drawn picture of three strangers that has lost its faces, where they are, and who they are to become."""
    rng = random.Random(f"diir group {number}")
    picture = sample_picture(rng, held_out=True, shot="full body", people=3)
    picture = replace(picture, style="flat", shot="full body", figures=tuple(
        replace(figure, expression="", item=None, tilt=0.0) for figure in picture.figures))
    image = torch.from_numpy(render(picture, side)).permute(2, 0, 1).float() / 255
    faces = [Face(truth.box, 1.0, torch.from_numpy(truth.five).float()) for truth in ground_truth(picture, side)]
    people = [reference_person(sample_identity(rng, held_out=True), rng, side) for _ in faces]
    return blurred(image), faces, people


def group_section(lab: Lab, number: int, keep: Callable) -> Iterator[tuple[str, Work]]:
    """Three faces of one picture, each with its own person; then only the one in the middle."""
    image, faces, people = group(number, lab.pipeline.side)

    def told(picture: Tensor, changed: Tensor) -> dict:
        rows = [[lab.similarity(picture, face, person) for person in people] for face in faces]
        same = torch.equal(picture[:, changed == 0], image[:, changed == 0])
        return {"similarities": rows, "identical outside": bool(same)}

    def before() -> dict:
        for i, person in enumerate(people):
            keep(f"person {i + 1}", person.image)
        keep("draft", image)
        return told(image, torch.zeros(image.shape[-2:]))

    def everyone() -> dict:
        repairs = [Repair(0, face, lab.target(person)) for face, person in zip(faces, people, strict=True)]
        made = repair_faces(lab.pipeline, [image], repairs)
        keep("all three", made.pictures[0])
        return told(made.pictures[0], made.changed[0])

    def middle() -> dict:
        made = repair_faces(lab.pipeline, [image], [Repair(0, faces[1], lab.target(people[1]))])
        keep("the middle one", made.pictures[0])
        return told(made.pictures[0], made.changed[0])

    yield from (("before", before), ("all three", everyone), ("the middle one", middle))


# --- tilt -------------------------------------------------------------------------------------------------------------


def turned(image: Tensor, degrees: float) -> Tensor:
    """``3 S S`` turned clockwise as seen about its middle; the border repeats."""
    turn = math.radians(degrees)
    matrix = torch.tensor([[math.cos(turn), math.sin(turn), 0.0], [-math.sin(turn), math.cos(turn), 0.0]])
    grid = F.affine_grid(matrix[None], (1, *image.shape), align_corners=False)
    return F.grid_sample(image[None], grid, mode="bicubic", padding_mode="border", align_corners=False)[0].clamp(0, 1)


def tilted(number: int, degrees: float, side: int) -> tuple[Tensor, Tensor, Face, Person]:
    """A drawn stranger turned by a known angle: sharp, blurred, where the face is, and who it is to become."""
    rng = random.Random(f"diir tilt {number}")
    picture = sample_picture(rng, sample_identity(rng, held_out=True), held_out=True, shot="half body")
    figure = replace(picture.figures[0], expression="", item=None, tilt=0.0, centre=(0.5, 0.5), head=0.26)
    picture = replace(picture, style="flat", figures=(figure,))
    truth = ground_truth(picture, side)[0]
    turn, middle = math.radians(degrees), torch.tensor([side / 2, side / 2])
    matrix = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    points = (torch.from_numpy(truth.five).float() - middle) @ matrix.T + middle
    x0, y0, x1, y1 = truth.box
    centre = (torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2]) - middle) @ matrix.T + middle
    size = (x1 - x0, y1 - y0)
    face = Face(turned_box(tuple(centre.tolist()), size, degrees), 1.0, points, extent=size)
    image = torch.from_numpy(render(picture, side)).permute(2, 0, 1).float() / 255
    sharp = turned(image, degrees)
    return eight_bit(sharp), blurred(sharp), face, reference_person(sample_identity(rng, held_out=True), rng, side)


def tilt_section(lab: Lab, number: int, degrees: float, keep: Callable) -> Iterator[tuple[str, Work]]:
    """A turned face: found or not, and repaired with the crop upright or as it lies."""
    sharp, image, face, person = tilted(number, degrees, lab.pipeline.side)
    reference = lab.vector(person.image, Face(person.box, 1.0))

    def told(picture: Tensor) -> dict:
        crop = crop_of(face, DiirRequest())
        found = largest_face(lab.models.detector.detect(cut(picture, crop, lab.pipeline.side)[None])[0])
        error = None if found is None else abs(tilt(found.landmarks) + math.degrees(crop.angle) - degrees) % 360
        keep(f"{degrees} degrees", picture)
        return {"similarity": float(lab.vector(picture, face) @ reference),
                "angle error": None if error is None else min(error, 360 - error)}

    def detector() -> dict:
        answers = {}
        for name, picture in (("sharp", sharp), ("blurred", image)):
            found = find_faces(picture[None], lab.models).pictures[0]
            near = [f for f in found if intersection_over_union(f.box, face.box) >= NEAR]
            error = min((abs(f.tilt - degrees) % 360 for f in near), default=None)
            answers[name] = None if error is None else min(error, 360 - error)
        return answers

    def repair(upright: float) -> Work:
        def work() -> dict:
            made = repair_faces(lab.pipeline, [image], [Repair(0, face, lab.target(person))],
                                DiirRequest(upright=upright))
            return told(made.pictures[0])

        return work

    yield "before", lambda: told(image)
    yield "detector", detector
    yield "upright crop", repair(10.0)
    if degrees:
        yield "crop as it lies", repair(180.0)


STYLE_NAMES: Sequence[str] = tuple(style for style in STYLES if style != "flat")
