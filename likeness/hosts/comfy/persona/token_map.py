"""A persona's words and the plain prompt's tokens, as ComfyUI tokenises them.

The model call's options carry what is made here under :data:`text.TOKEN_MAPS_KEY`, for patches that look words up in
the plain prompt.
"""

from __future__ import annotations

from typing import Any

import torch

from ....core.persona.shares import word_shares
from ..text import words_of
from .text import Personas, marked_text, plain_text, written


def prompt_token_map(clip: Any, prompt: str, personas: Personas) -> torch.Tensor | None:
    """Shares ``L P`` of the plain prompt's ``P`` tokens in each of the ``L`` spoken ones; see :func:`word_shares`."""
    marked, idents = marked_text(clip, prompt, personas)
    plain = plain_text(prompt, personas)
    plain_words = {p.placeholder: len(words_of(clip, written(p.persona.supercategory))) for p in personas}
    marks = {idents[p.placeholder]: (p.persona.tokens, plain_words[p.placeholder]) for p in personas}
    lengths = _length(clip, marked), _length(clip, plain)
    window = len(next(iter(clip.tokenize("").values()))[0])
    return word_shares(words_of(clip, marked), words_of(clip, plain), marks, lengths, window)


def _length(clip: Any, text: str) -> int:
    return sum(len(chunk) for chunk in next(iter(clip.tokenize(text).values())))
