"""Which of a prompt's tokens a persona's words stand for.

A persona of four words takes the place of a plain word of one token, and moves every word behind it. Whoever has found
"hat" in the plain prompt (MagicFace) finds it at another place while the persona speaks, and sums the spoken text's
columns back to those of the plain prompt with the shares made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..prompt import Word, same_token

Pairs = list[tuple[list[int], list[int]]]


def word_shares(
    spoken: Sequence[Word],
    plain: Sequence[Word],
    marks: Mapping[object, tuple[int, int]],
    lengths: tuple[int, int],
    window: int = 77,
) -> torch.Tensor | None:
    """Shares of the plain prompt's tokens in each token that is spoken.

    A persona's words belong to its plain word, in equal parts where that has several tokens; start tokens, and what
    follows the text, belong to their like.

    Args:
        spoken, plain: the tokens of both texts, without start, end and padding.
        marks: token that stands for a persona in ``spoken`` -> number of its words there, and of its plain word's
            tokens in ``plain``.
        lengths: tokens of both text contexts in all, L and P.
        window: tokens of one window of the text encoder.

    Returns:
        ``L P``; rows sum to 1, those of words that are cut off in the other text to 0. None where the two texts do not
        run in parallel, as when a placeholder stands inside a word.
    """
    pairs = _pairs(spoken, plain, marks)
    if pairs is None:
        return None
    shares = torch.zeros(lengths)
    for positions, own in pairs:
        own = [column for column in own if column < lengths[1]]
        for row in positions:
            if own and row < lengths[0]:
                shares[row, own] = 1 / len(own)
    _pad(shares, {w.position for w in spoken}, {w.position for w in plain}, window)
    return shares


def _pairs(spoken: Sequence[Word], plain: Sequence[Word], marks: Mapping[object, tuple[int, int]]) -> Pairs | None:
    """Positions that belong together, walking through both texts."""
    pairs: Pairs = []
    i = k = 0
    while i < len(spoken):
        token = spoken[i].token
        mark = None if isinstance(token, torch.Tensor) else marks.get(token)
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
