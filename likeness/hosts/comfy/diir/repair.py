"""One run of *DIIR Face Repair*: faces found, chosen and told apart, their crops restored, pasted once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management as management
import torch
from torch import Tensor

from ....core.diir.gate import Gate
from ....core.diir.geometry import Crop, cut, face_crop
from ....core.diir.repair import Place, Repaired, repair
from ....core.diir.request import DiirRequest
from ....faces.assign import Assignment
from ....faces.find import find_faces, with_landmarks
from ....faces.interface import Face, FaceModels, Faces
from .. import images, text
from ..control import check_control
from ..magicface.references import References
from ..magicid.identities import Identities
from ..persona.text import Personas
from ..unet import native_side
from .checks import check_model, check_text, model_notes, read_pictures
from .choose import NODE, face_px, named, reasons, who_is_who
from .control import LandmarkControl
from .crops import HostModel, Subject
from .identity import identified
from .judge import Judge
from .masks import Heads
from .people import Person, people_of, prompt_for
from .report import REPAIRED, THUMBNAIL, FaceReport, Outcome, side_by_side
from .settings import LEAVE, MIN_FACE_PX, Control, Options


@dataclass(frozen=True)
class Job:
    """The inputs of *DIIR Face Repair*, as its tooltips tell them.

    Attributes:
        image: IMAGE ``P H W C``. positive, negative: CONDITIONING, or None for the prompt and for nothing.
    """

    image: Tensor
    model: Any
    clip: Any
    vae: Any
    prompt: str = ""
    which: str = ""
    max_face_px: int = 100
    strength: float = 1.0
    seed: int = 0
    positive: list | None = None
    negative: list | None = None
    faces: Faces | None = None
    references: References | None = None
    personas: Personas | None = None
    identities: Identities | None = None
    options: Options = field(default_factory=Options)

    @property
    def request(self) -> DiirRequest:
        """The method's settings, the node's own widgets in them."""
        given = self.options.request
        fast = given.fast_strength * self.strength
        return replace(given, max_face_px=self.max_face_px, strength=self.strength, fast_strength=fast)


@dataclass(eq=False)
class Entry:
    """One face on its way through a run.

    Attributes:
        picture: from 0. reason: why it is left alone, or None. who: its person.
        similarity: to that person, before. prompt, place, mask: once it is to be repaired.
        crops: before and after, ``3 S S``.
    """

    picture: int
    face: Face
    reason: str | None
    who: Assignment
    similarity: float | None = None
    prompt: str | None = None
    place: Place | None = None
    mask: str | None = None
    crops: tuple[Tensor, Tensor] | None = None
    similarity_after: float | None = None


def repair_faces(job: Job, models: FaceModels | None) -> Outcome:
    """Do the job. Pictures in which nothing is repaired come back as they are.

    Args:
        models: find, compare and parse faces; None where faces are given and nothing of that is there.

    Raises:
        LikenessError: the model, the VAE or an input is none this can work with.
    """
    width = check_model(job.model)
    check_text(job.clip, width)
    if job.options.control is not None:
        check_control(job.options.control.net, width, "DIIR Landmark Control: control_net")
    pictures = read_pictures(job.image)
    judge = Judge(models)
    people, notes = people_of(job.references, job.personas, judge, job.identities)
    notes += model_notes(job.model, job.references is not None)
    if job.personas and job.positive is not None:
        notes.append("positive stands in place of the prompt, so the personas are not spoken")
    entries = _entries(job, pictures, _found(job, pictures, models), people, judge)
    todo = [entry for entry in entries if entry.reason is None]
    if not todo or job.request.start == job.request.steps:
        return _untouched(job, pictures, entries, people, notes)
    notes += _locate(job, pictures, todo, models)
    if job.options.control is not None and any(e.face.dense is None and e.face.landmarks is None for e in todo):
        notes.append("some faces have no landmarks: control_net does not act there")
    todo.sort(key=lambda entry: (entry.who.person is None, entry.who.person, entry.prompt))  # chunks of one person
    host = _host(job, todo, people)
    done = repair(pictures, [e.place for e in todo], host, host.size, host.rows(job.options.faces_at_once))
    for i, entry in enumerate(todo):
        entry.crops = done.before[i], done.after[i]
        if i in done.failed:
            entry.reason = host.failed.get(i, "the model gave NaN or infinite values; a half-precision VAE or model?")
        else:
            vector = None if entry.who.person is None else people[entry.who.person].vector
            entry.similarity_after = judge.in_crop(done.after[i], vector)
    return _outcome(job, pictures, entries, people, done, [*notes, *host.notes])


# -- what comes in -----------------------------------------------------------------------------------------------------


def _found(job: Job, pictures: list[Tensor], models: FaceModels | None) -> Faces:
    batch = torch.stack([picture[:3] for picture in pictures])
    if job.faces is None:
        found = find_faces(batch, models, tick=management.throw_exception_if_processing_interrupted)
        return with_landmarks(batch, found, models)
    job.faces.check(batch, f"{NODE}: faces")
    return job.faces


def _entries(job: Job, pictures: list[Tensor], found: Faces, people: tuple[Person, ...], judge: Judge) -> list[Entry]:
    """Every face with its person, and why it is left alone if it is."""
    entries: list[Entry] = []
    gate = Gate(job.max_face_px, MIN_FACE_PX)
    for i, (picture, faces) in enumerate(zip(pictures, found.pictures, strict=True)):
        if not bool(torch.isfinite(picture).all()):
            entries += [Entry(i, face, "the picture holds NaN or infinite values", _NOBODY) for face in faces]
            continue
        why = reasons(faces, job.which, i, gate, _where(job, i, picture.shape[-2:]))
        table = judge.table(picture[:3], faces, [person.vector for person in people])
        regions = [person.region for person in people]
        who = who_is_who(
            faces,
            [reason is None for reason in why],
            len(people),
            table,
            judge.good_enough,
            regions,
            job.options.people,
            named(job.which),
        )
        for j, face in enumerate(faces):
            entry = Entry(i, face, why[j], who[j], _known(who[j].similarity))
            entry.reason = entry.reason or _stays(entry, job, bool(people))
            entries.append(entry)
    for line, entry in enumerate(e for e in entries if e.reason is None):
        person = None if entry.who.person is None else people[entry.who.person]
        entry.prompt = prompt_for(job.prompt, person, line if entry.who.person is None else entry.who.person)
    return entries


_NOBODY = Assignment(None, "nobody")


def _known(similarity: float | None) -> float | None:
    return similarity if similarity is not None and math.isfinite(similarity) else None


def _stays(entry: Entry, job: Job, known: bool) -> str | None:
    """Why a face that passed the gates is left alone after all."""
    options = job.options
    if known and entry.who.person is None and options.strangers == LEAVE:
        return "none of the people"
    good = entry.similarity is not None and entry.similarity >= options.good_enough
    if good and not named(job.which):
        return f"good enough: similarity {entry.similarity:.2f}"
    return None


def _where(job: Job, picture: int, size: tuple[int, int]) -> Tensor | None:
    """The mask of where to look, at the picture's size, ``H W``."""
    if job.options.where is None:
        return None
    masks = images.mask_to_torch(job.options.where, source="DIIR Options: where")
    return images.resize(masks[min(picture, len(masks) - 1)][None], size, "bilinear")[0, 0].cpu()


# -- the faces that are repaired ---------------------------------------------------------------------------------------


def _locate(job: Job, pictures: list[Tensor], todo: list[Entry], models: FaceModels | None) -> list[str]:
    """Give every face its crop and mask; notes for the report."""
    request = job.request
    heads = Heads(models, job.options.mask, request.feather, native_side(job.model))
    for entry in todo:
        crop = face_crop(
            entry.face.box, math.radians(entry.face.tilt), request.frame, request.upright, entry.face.extent
        )
        mask, entry.mask = heads.mask(pictures[entry.picture][:3], entry.face, crop)
        entry.place = Place(entry.picture, crop, mask)
    return [heads.note] if heads.note else []


def _host(job: Job, todo: list[Entry], people: tuple[Person, ...]) -> HostModel:
    subjects: dict[tuple[int | None, str | None], Subject] = {}
    for entry in todo:
        key = entry.who.person, entry.prompt
        if key not in subjects:
            person = None if entry.who.person is None else people[entry.who.person]
            made = identified(
                job.model, job.clip, job.vae, job.references, person, entry.prompt, job.seed, job.positive,
                job.identities,
            )  # fmt: skip
            subjects[key] = Subject(made, job.positive is not None)
    return HostModel(
        job.model,
        job.vae,
        job.request,
        [entry.place for entry in todo],
        [subjects[entry.who.person, entry.prompt] for entry in todo],
        (text.encode(job.clip, "").conditioning, False) if job.negative is None else (job.negative, True),
        [job.seed + 1000 * entry.picture + entry.face.number - 1 for entry in todo],
        tuple(job.image.shape[1:3]),
        None if job.options.control is None else _control(job, job.options.control, todo),
    )


def _control(job: Job, control: Control, todo: list[Entry]) -> LandmarkControl:
    return LandmarkControl(
        control.net,
        job.vae,
        control.style,
        control.strength,
        control.end,
        [entry.face for entry in todo],
        [entry.place.crop for entry in todo],
        native_side(job.model),
    )


# -- what comes out ----------------------------------------------------------------------------------------------------


def _outcome(
    job: Job, pictures: list[Tensor], entries: list[Entry], people: tuple[Person, ...], done: Repaired, notes: list[str]
) -> Outcome:
    fine = [entry for entry in entries if entry.crops is not None and entry.reason is None]
    image = torch.stack([_as_given(new, old, job.image) for new, old in zip(done.pictures, pictures, strict=True)])
    size = done.before[0].shape[-1]
    return Outcome(
        image=image if fine else job.image,
        mask=torch.stack(done.changed),
        crops=side_by_side([e.crops[0] for e in fine], [e.crops[1] for e in fine], size),
        faces=tuple(_report(entry, people) for entry in entries),
        notes=tuple(notes),
        thumbnails=tuple(_thumbnails(entry, pictures) for entry in entries),
    )


def _untouched(
    job: Job, pictures: list[Tensor], entries: list[Entry], people: tuple[Person, ...], notes: list[str]
) -> Outcome:
    for entry in entries:
        entry.reason = entry.reason or "strength 0"
    return Outcome(
        image=job.image,
        mask=torch.zeros(job.image.shape[:3]),
        crops=side_by_side([], [], native_side(job.model)),
        faces=tuple(_report(entry, people) for entry in entries),
        notes=tuple(notes),
        thumbnails=tuple(_thumbnails(entry, pictures) for entry in entries),
    )


def _as_given(new: Tensor, old: Tensor, image: Tensor) -> Tensor:
    """A picture ``C H W`` as IMAGE ``H W C`` with the channels that came in; what did not change is untouched."""
    if image.shape[-1] >= 3:
        return new.movedim(0, -1)
    grey = torch.where((new == old).all(0), old[0], new.mean(0))  # H W
    return grey[..., None]


def _report(entry: Entry, people: tuple[Person, ...]) -> FaceReport:
    person = entry.who.person
    return FaceReport(
        picture=entry.picture + 1,
        number=entry.face.number,
        box=tuple(map(float, entry.face.box)),
        size=face_px(entry.face),
        tilt=float(entry.face.tilt),
        done=entry.reason or REPAIRED,
        person=None if person is None else people[person].name,
        person_by=None if person is None else entry.who.how,
        similarity_before=entry.similarity,
        similarity_after=entry.similarity_after,
        mask=entry.mask,
        prompt=entry.prompt,
    )


def _thumbnails(entry: Entry, pictures: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Small pictures of the face for the table: before, and after where it was repaired."""
    crop: Crop = face_crop(entry.face.box, math.radians(entry.face.tilt), extent=entry.face.extent)
    before = cut(torch.nan_to_num(pictures[entry.picture][:3]), crop, THUMBNAIL)
    if entry.crops is None or entry.reason is not None:
        return before, None
    return before, images.resize(entry.crops[1][None], (THUMBNAIL, THUMBNAIL), "bilinear")[0]
