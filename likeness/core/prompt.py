"""Where a concept's word or phrase stands among a prompt's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .errors import bad_input

Positions = tuple[int, ...]


@dataclass(frozen=True)
class Word:
    """One token of a text: what it is, where it lies in the text context, and whether a word ends with it.

    ``token`` is an id, or the embedding itself (textual inversion in ComfyUI).
    """

    token: Any
    position: int
    ends_word: bool


def same_token(a: Any, b: Any) -> bool:
    """Whether two tokens are the same id, or the same embedding."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and not isinstance(a, torch.Tensor) and a == b


def find_phrase(
    phrase: Sequence[Word], prompt: Sequence[Word], *, name: str, text: str, source: str
) -> list[Positions]:
    """Token positions of every occurrence of a phrase, in reading order; never inside a longer word.

    Args:
        phrase, prompt: the tokens of both, without start, end and padding.
        name, text: the phrase and the prompt as written, for messages.
        source: node and input to name in the error, e.g. ``"MagicFace Apply: prompt"``.

    Raises:
        LikenessError: the phrase has no tokens, or is not in the prompt.
    """
    if not phrase:
        raise bad_input(source, f"the concept {name!r}", "a word or phrase", "Name what the picture shows.")
    found = occurrences(phrase, prompt)
    if not found:
        raise bad_input(
            source,
            f"{text!r}, in which the concept {name!r} does not occur",
            "a prompt that names every reference's concept in the same words",
            f"Write {name!r} into the prompt, or change the reference's concept to a word that is there.",
        )
    return found


def occurrences(phrase: Sequence[Word], prompt: Sequence[Word]) -> list[Positions]:
    """Token positions of every occurrence of a phrase, in reading order, perhaps none; never inside a longer word."""
    found, i = [], 0
    while phrase and i + len(phrase) <= len(prompt):
        on_edge = i == 0 or prompt[i - 1].ends_word
        if on_edge and all(same_token(prompt[i + j].token, word.token) for j, word in enumerate(phrase)):
            found.append(tuple(word.position for word in prompt[i : i + len(phrase)]))
            i += len(phrase)
        else:
            i += 1
    return found
