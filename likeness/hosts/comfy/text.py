"""Prompts in ComfyUI: encode a text, and find where a phrase's tokens lie in the cross-attention context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...core import prompt as tokens
from ...core.prompt import Word

#: The encoder whose tokens are read where a model has two (SDXL): both lay their tokens out alike.
PREFERRED_ENCODERS = ("l", "h", "g")
#: In ``transformer_options``, where another text is put in place of a prompt's: per row the shares ``L P`` of the
#: prompt's ``P`` tokens in each of that text's ``L`` tokens, or None where the row has the prompt itself.
TOKEN_MAPS_KEY = "likeness_token_maps"


@dataclass(frozen=True)
class Encoded:
    """A prompt's ``CONDITIONING`` entry, split up.

    Attributes:
        context: cross-attention context ``1 L C``. contexts: of every entry (a CLIP whose hooks follow a schedule has
            one for each of its ranges), the first among them.
        pooled: pooled text embedding ``1 P``, or None where the encoder gives none.
        conditioning: the entries as ComfyUI's nodes pass them on.
    """

    context: torch.Tensor
    contexts: tuple[torch.Tensor, ...]
    pooled: torch.Tensor | None
    conditioning: list


def encode(clip: Any, prompt: str) -> Encoded:
    """Encode ``prompt`` as ComfyUI's own text node does (weights, embeddings, hooks and clip skip included)."""
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    context, extra = conditioning[0]
    return Encoded(context, tuple(text for text, _ in conditioning), extra.get("pooled_output"), conditioning)


def _inner_tokenizer(clip: Any, name: str) -> Any:
    tokenizer = clip.tokenizer
    return next((getattr(tokenizer, n) for n in (f"clip_{name}", name) if hasattr(tokenizer, n)), tokenizer)


def words_of(clip: Any, text: str) -> list[Word]:
    """The text's tokens without start, end and padding, with their positions in the context (77 a chunk)."""
    by_encoder = clip.tokenize(text, return_word_ids=True)
    name = next((n for n in PREFERRED_ENCODERS if n in by_encoder), next(iter(by_encoder)))
    vocabulary = getattr(_inner_tokenizer(clip, name), "inv_vocab", {})
    words, offset = [], 0
    for chunk in by_encoder[name]:
        for i, (token, _weight, word_id) in enumerate(chunk):
            if word_id != 0:
                piece = vocabulary.get(token, "</w>") if isinstance(token, int) else "</w>"
                words.append(Word(token, offset + i, piece.endswith("</w>")))
        offset += len(chunk)
    return words


def find_phrase(clip: Any, prompt: str, phrase: str, *, source: str) -> list[tuple[int, ...]]:
    """Token positions of every occurrence of ``phrase`` in ``prompt``.

    Args:
        clip: ComfyUI's CLIP.
        prompt: the text that is encoded; weights such as ``(red tie:1.2)`` and ``embedding:name`` are understood.
        phrase: one or more words, or an ``embedding:name``; letter case does not matter. Brackets in it are the
            prompt's weights or, where that is not found, brackets that are meant (``\\(`` in the prompt).
        source: node and input to name in the error, e.g. ``"MagicFace Apply: prompt"``.

    Returns:
        One tuple of positions into the cross-attention context per occurrence, in reading order.

    Raises:
        LikenessError: the phrase is empty or is not in the prompt.
    """
    words = words_of(clip, prompt)
    for spelling in (phrase, phrase.replace("(", "\\(").replace(")", "\\)")):
        found = tokens.occurrences(words_of(clip, spelling), words)
        if found:
            return found
    return tokens.find_phrase(words_of(clip, phrase), words, name=phrase, text=prompt, source=source)


def assign_tokens(clip: Any, prompt: str, phrases: Sequence[str], *, source: str) -> list[tuple[int, ...]]:
    """Token positions for each of several concepts.

    A phrase named by one reference takes all its occurrences. Where several references name the same phrase and it
    occurs at least as often ("a man beside another man"), each takes its own occurrence in order, the last one the
    rest; where it occurs less often they share all of them.
    """
    names = [" ".join(phrase.lower().split()) for phrase in phrases]
    out = []
    for i, name in enumerate(names):
        occurrences = find_phrase(clip, prompt, phrases[i], source=source)
        twins = names.count(name)
        if 1 < twins <= len(occurrences):
            rank = names[:i].count(name)
            occurrences = occurrences[rank:] if rank == twins - 1 else occurrences[rank : rank + 1]
        out.append(tuple(position for occurrence in occurrences for position in occurrence))
    return out
