"""Which faces are repaired and who each is: the text of *which*, the gates, and the people given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ....core.diir.gate import Gate, longer_side
from ....core.diir.geometry import Box
from ....faces.assign import NOBODY, ORDER, SIMILARITY, Assignment, assign
from ....faces.interface import Face
from ....faces.select import ALL, LARGEST, NONE, chosen

NODE = "DIIR Face Repair"


def named(which: str) -> bool:
    """Whether a text names faces by their numbers, and not by a rule."""
    return which.strip().lower() not in ("", ALL, NONE, LARGEST)


def reasons(faces: Sequence[Face], which: str, picture: int, gate: Gate, where: Tensor | None) -> list[str | None]:
    """Per face of one picture why it is left alone, or None where it is repaired.

    A named face is repaired whatever its size. ``all`` and ``largest`` know no largest size.

    Args:
        which: see :func:`.faces.select.chosen`; empty is whatever the gate lets through. picture: from 0.
        gate: holds for faces that are not named.
        where: ``H W`` of the picture, where faces are looked for; None is everywhere.
    """
    rule = which.strip().lower()
    if named(which) or rule == NONE:
        numbers = {face.number for face in chosen(faces, which, picture, f"{NODE}: which")}
        return [None if face.number in numbers else "not chosen" for face in faces]
    if rule in (ALL, LARGEST):
        gate = replace(gate, max_px=0, most=1 if rule == LARGEST else gate.most)
    return gate.reasons([upright_box(face) for face in faces], where)


def upright_box(face: Face) -> Box:
    """The box of a face as it would stand upright, about the same middle."""
    (x, y), (width, height) = face.centre, face.size
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def face_px(face: Face) -> float:
    """Longer side of a face in pixels, as it would stand upright."""
    return longer_side(upright_box(face))


def who_is_who(
    faces: Sequence[Face],
    passed: Sequence[bool],
    people: int,
    similarity: Tensor | None,
    good_enough: float,
    regions: Sequence[Tensor | None],
    override: str,
    by_name: bool = False,
) -> list[Assignment]:
    """A person for each face of one picture.

    Likeness and regions are asked of all faces, so that a bystander who is to be repaired does not get the person of a
    large face; the rest goes from left to right among the faces that passed the gates. A face that the user has named
    gets somebody in any case: the most similar person, though that be another face as well.

    Args:
        passed: per face whether it is to be repaired. similarity: ``F P`` or None. good_enough: least that counts.
        override: see :func:`.faces.assign.assign`. by_name: whether those that passed are the ones the user has named.
    """
    # from left to right it counts all faces, as is right where only some of the people's faces are named
    told = assign(
        faces, people, similarity=similarity, good_enough=good_enough, regions=regions, override=override,
        source="DIIR Options: people",
    )  # fmt: skip
    some = by_name and sum(passed) < people
    who = [one if one.how != ORDER or some else Assignment(None, NOBODY) for one in told]
    taken = {one.person for one in who}
    free = [person for person in range(people) if person not in taken]
    rest = sorted((i for i, one in enumerate(who) if one.how == NOBODY and passed[i]), key=lambda i: faces[i].centre)
    for i, person in zip(rest, free, strict=False):
        who[i] = Assignment(person, ORDER, _likeness(similarity, i, person))
    if by_name and people:
        for i in (i for i in rest if who[i].how == NOBODY):
            who[i] = _most_similar(similarity, i, people) or who[i]
    return who


def _likeness(similarity: Tensor | None, face: int, person: int) -> float | None:
    return None if similarity is None else float(similarity[face, person])


def _most_similar(similarity: Tensor | None, face: int, people: int) -> Assignment | None:
    if similarity is None:
        return Assignment(0, ORDER) if people == 1 else None
    person = int(similarity[face].nan_to_num(-2.0).argmax())
    return Assignment(person, SIMILARITY, _likeness(similarity, face, person))
