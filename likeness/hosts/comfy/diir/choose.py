"""Which faces are repaired and who each is: the text of *which*, the gates, and the people given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ....core.diir.gate import Gate, longer_side
from ....core.diir.geometry import Box
from ....core.errors import bad_input
from ....faces.assign import NOBODY, ORDER, SIMILARITY, Assignment, assign
from ....faces.interface import Face

NODE = "DIIR Face Repair"
_PART = re.compile(r"(?:(\d+):)?(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Which:
    """The faces a user names.

    Attributes:
        rule: ``"small"`` (whatever the gates let through), ``"all"``, ``"largest"``, ``"none"`` or ``"named"``.
        named: for ``"named"``, pairs (picture or None for every picture, number of the face there), both from 1.
    """

    rule: str
    named: frozenset[tuple[int | None, int]] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Which:
        """Read ``""``, ``all``, ``none``, ``largest``, or numbers such as ``1, 3-5, 2:1`` (picture 2, face 1).

        Raises:
            LikenessError: a part is none of these.
        """
        words = text.strip().lower()
        if words in ("", "all", "none", "largest"):
            return cls(words or "small")
        named: set[tuple[int | None, int]] = set()
        for part in filter(None, re.split(r"[,;\s]+", re.sub(r"\s*([:-])\s*", r"\1", words))):
            found = _PART.fullmatch(part)
            if found is None or not 1 <= int(found[2]) <= int(found[3] or found[2]) <= 10_000:
                raise bad_input(
                    f"{NODE}: which",
                    repr(part),
                    "numbers such as '1, 3', 'picture:face' such as '2:1', or all, largest, none",
                    "Take the numbers from the table under the node, or leave it empty for the small faces.",
                )
            picture = int(found[1]) if found[1] else None
            named |= {(picture, number) for number in range(int(found[2]), int(found[3] or found[2]) + 1)}
        return cls("named", frozenset(named))

    def reasons(self, faces: Sequence[Face], picture: int, gate: Gate, where: Tensor | None) -> list[str | None]:
        """Per face of one picture why it is left alone, or None where it is repaired.

        A named face is repaired whatever its size. ``all`` and ``largest`` know no largest size.

        Args:
            picture: its number, from 1. gate: holds for faces that are not named.
            where: ``H W`` of the picture, where faces are looked for; None is everywhere.
        """
        if self.rule == "none":
            return ["none is to be repaired"] * len(faces)
        if self.rule == "named":
            named = [bool(self.named & {(None, face.number), (picture, face.number)}) for face in faces]
            return [None if one else "not chosen" for one in named]
        if self.rule == "all":
            gate = replace(gate, max_px=0)
        elif self.rule == "largest":
            gate = replace(gate, max_px=0, most=1)
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
    named: bool = False,
) -> list[Assignment]:
    """A person for each face of one picture.

    Likeness and regions are asked of all faces, so that a bystander who is to be repaired does not get the person of a
    large face; the rest goes from left to right among the faces that passed the gates. A face that the user has named
    gets somebody in any case: the most similar person, though that be another face as well.

    Args:
        passed: per face whether it is to be repaired. similarity: ``F P`` or None. good_enough: least that counts.
        override: see :func:`.faces.assign.assign`. named: whether those that passed are the ones the user has named.
    """
    told = assign(
        faces, people, similarity=similarity, good_enough=good_enough, regions=regions, override=override
    )  # from left to right it counts all faces, as is right where only some of the people's faces are named
    some = named and sum(passed) < people
    who = [one if one.how != ORDER or some else Assignment(None, NOBODY) for one in told]
    taken = {one.person for one in who}
    free = [person for person in range(people) if person not in taken]
    rest = sorted((i for i, one in enumerate(who) if one.how == NOBODY and passed[i]), key=lambda i: faces[i].centre)
    for i, person in zip(rest, free, strict=False):
        who[i] = Assignment(person, ORDER, _likeness(similarity, i, person))
    if named and people:
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
