"""Which of a prompt's tokens a persona's words stand for, for patches that look words up in the plain prompt.

A persona of four words takes the place of a plain word of one token, and moves every word behind it. A patch that has
found "hat" in the plain prompt (MagicFace) finds it at another place while the persona speaks. The model call's options
therefore carry, under :data:`text.TOKEN_MAPS_KEY`, how to sum the spoken text's columns back to those of the plain
prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ....core.prompt import Word, same_token
from ..text import words_of
from .text import Personas, marked_text, plain_text


def prompt_shares(clip: Any, prompt: str, personas: Personas) -> torch.Tensor | None:
    """Shares ``L P`` of the plain prompt's ``P`` tokens in each of the ``L`` tokens that are spoken.

    Every row sums to 1. A persona's words belong to its plain word, in equal parts where that has several tokens; start
    tokens, and what follows the text, belong to their like. None where the two texts do not run in parallel, as when a
    placeholder stands inside a word.
    """
    marked, idents = marked_text(clip, prompt, personas)
    plain = plain_text(prompt, personas)
    spoken_words, plain_words = words_of(clip, marked), words_of(clip, plain)
    long = {idents[p.placeholder]: (p.persona.tokens, len(words_of(clip, p.persona.supercategory))) for p in personas}
    pairs = _pairs(spoken_words, plain_words, long)
    if pairs is None:
        return None
    spoken_length, plain_length = _length(clip, marked), _length(clip, plain)
    shares = torch.zeros(spoken_length, plain_length)
    for spoken, own in pairs:
        for row in spoken:
            shares[row, own] = 1 / len(own)
    window = len(next(iter(clip.tokenize("").values()))[0])
    _pad(shares, {w.position for w in spoken_words}, {w.position for w in plain_words}, window)
    return shares


def _length(clip: Any, text: str) -> int:
    return sum(len(chunk) for chunk in next(iter(clip.tokenize(text).values())))


Pairs = list[tuple[list[int], list[int]]]


def _pairs(spoken: Sequence[Word], plain: Sequence[Word], long: Mapping[int, tuple[int, int]]) -> Pairs | None:
    """Positions that belong together, walking through both texts; ``long`` has a mark's length in each of them."""
    pairs: Pairs = []
    i = k = 0
    while i < len(spoken):
        token = spoken[i].token
        mark = None if isinstance(token, torch.Tensor) else long.get(token)
        n, m = mark or (1, 1)
        if not m or k + m > len(plain) or (mark is None and not same_token(token, plain[k].token)):
            return None
        pairs.append(([word.position for word in spoken[i : i + n]], [word.position for word in plain[k : k + m]]))
        i, k = i + n, k + m
    return pairs if k == len(plain) else None


def _pad(shares: torch.Tensor, spoken: set[int], plain: set[int], window: int) -> None:
    """Give start tokens to start tokens, and end and padding to end and padding in their order."""
    rest, own = (
        [p for p in range(length) if p % window and p not in words]
        for length, words in zip(shares.shape, (spoken, plain), strict=True)
    )
    for rank, row in enumerate(rest):
        shares[row, own[min(rank, len(own) - 1)]] = 1
    for row in range(0, shares.shape[0], window):
        shares[row, min(row, shares.shape[1] - window)] = 1
