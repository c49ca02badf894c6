"""The people a run knows: MagicFace references and personas, what they look like, and what a prompt calls them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from torch import Tensor

from ....faces.find import find_faces
from ....faces.interface import largest_face
from ..magicface.references import References
from ..magicid.identities import Identities, Identity
from ..persona.text import NamedPersona, Personas
from .judge import Judge

if TYPE_CHECKING:
    from ..magicface.references import GivenConcept

#: The trial's finding: plain, without the picture's own words.
DEFAULT_PROMPT = "a photo of {person}, portrait"
#: Words before which no article is put.
DETERMINERS = frozenset(("a", "an", "the", "my", "your", "his", "her", "our", "their", "this", "that", "one"))
PERSON = "person"
NOBODY = "a person"


@dataclass(frozen=True, eq=False)
class Person:
    """One person.

    Attributes:
        concept: the MagicFace reference, if any. persona: the learnt words, if any. identity: MagicID's, if any.
        vector: identity vector ``D`` from the reference's pictures, or the identity's; None where there is none.
    """

    concept: GivenConcept | None = None
    persona: NamedPersona | None = None
    vector: Tensor | None = None
    identity: Identity | None = None

    @property
    def name(self) -> str:
        """For the report."""
        if self.concept is not None:
            return self.concept.name
        return self.identity.name if self.identity is not None else self.persona.placeholder

    @property
    def word(self) -> str:
        """In a prompt, without an article: the persona's placeholder, else the reference's word, else ``person``."""
        if self.persona is not None:
            return self.persona.placeholder
        return self.concept.name if self.concept is not None else PERSON

    @property
    def region(self) -> Tensor | None:
        """Where in the picture the person belongs, ``h w``, or None."""
        return None if self.concept is None else self.concept.region


def with_article(word: str) -> str:
    """``man`` to ``a man``; a word that brings an article or a possessive, or begins with a capital, stays."""
    first = word.split()[0]
    if first.lower() in DETERMINERS or first[0].isupper():
        return word
    return f"{'an' if first[0].lower() in 'aeiou' else 'a'} {word}"


def people_of(
    references: References | None, personas: Personas | None, judge: Judge, identities: Identities | None = None
) -> tuple[tuple[Person, ...], list[str]]:
    """The people of chains of references, personas and identities: the first of each are one person, and so on.

    References in whose pictures no face is seen (a tie, a texture) are no people, unless no reference shows a face.

    Returns:
        The people, and notes for the report.
    """
    concepts = tuple(item for item in references.concepts if item.weight > 0) if references else ()
    notes: list[str] = []
    known = [Person(concept=item, vector=_vector(item, judge)) for item in concepts]
    if any(person.vector is not None for person in known):
        left_out = [person.name for person in known if person.vector is None]
        known = [person for person in known if person.vector is not None]
        notes += [f"reference '{name}': no face is seen in it, so it is no person here" for name in left_out]
    elif known:
        notes.append(judge.note or "no face is seen in the references: people are told apart by their places")
    rows = zip_longest(known, personas or (), identities.people if identities else ())
    return tuple(_joined(person or Person(), persona, identity, judge) for person, persona, identity in rows), notes


def _joined(person: Person, persona: NamedPersona | None, identity: Identity | None, judge: Judge) -> Person:
    vector = person.vector
    if vector is None and identity is not None and identity.vector is not None and judge.embedder is not None:
        vector = identity.vector if identity.embedder == judge.embedder.name else None
    return replace(person, persona=persona, identity=identity, vector=vector)


def _vector(concept: GivenConcept, judge: Judge) -> Tensor | None:
    """Identity vector of a reference's pictures, the mean over its views."""
    if judge.embedder is None:
        return None
    found = find_faces(concept.images, judge.models).pictures
    largest = [(image, largest_face(faces)) for image, faces in zip(concept.images.cpu(), found, strict=True)]
    vectors = [judge.vector(image, face) for image, face in largest if face is not None]
    vectors = [vector for vector in vectors if vector is not None]
    return judge.mean(vectors) if vectors else None


def prompt_for(template: str, person: Person | None, line: int) -> str:
    """The face prompt of one person or face.

    Args:
        template: one line for all, or a line each; ``{person}`` stands for ``a man`` or ``S*``, ``{word}`` for ``man``.
        line: from 0; the last line serves all further ones.
    """
    lines = [text.strip() for text in template.splitlines() if text.strip()] or [DEFAULT_PROMPT]
    word = NOBODY if person is None else person.word
    called = word if person is None or person.persona is not None else with_article(word)
    return lines[min(line, len(lines) - 1)].replace("{person}", called).replace("{word}", word)
