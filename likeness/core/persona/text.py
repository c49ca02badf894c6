"""Prompts with a hole in them, and what the method asks of a text encoder.

A prompt is laid out with ``n`` positions left for the persona's words. Their embeddings overwrite the table's before
position embeddings are added; the encoder then runs as always (causal, no padding mask). The cross-attention *keys*
come from its normalised output; for the *values* the output before the final norm is bent by the residual first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import bad_input
from .mapper import part_lengths, rescale

DEFAULT_PLACEHOLDER = "S*"
TEMPLATE_SLOT = "{}"


class TextEncoder(Protocol):
    """A CLIP-like text encoder, or two whose outputs are joined (SDXL). Frozen; gradients flow through embeddings.

    ``widths`` has one entry per encoder, ``C`` is their sum.
    """

    widths: tuple[int, ...]
    length: int

    def embed(self, ids: Tensor) -> Tensor:
        """``B L`` ids -> ``B L C`` rows of the token table, no positions added."""

    def hidden(self, embeddings: Tensor) -> Tensor:
        """``B L C`` -> ``B L C``, the output the UNet is conditioned on, *before* the final norm."""

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The final norm (the identity for a model conditioned on an unnormalised layer)."""

    def last_queries_keys(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """``B L C`` -> last block's attention queries and keys, each ``B H L D``; nothing behind them is computed."""


class Tokenizer(Protocol):
    """Splits text into ids without begin and end marks."""

    bos: int
    eos: int
    pad: int
    length: int

    def pieces(self, text: str) -> list[int]:
        """Ids of ``text`` alone."""


@dataclass(frozen=True)
class Layout:
    """One prompt ready for the encoder.

    Attributes:
        ids: ``L`` token ids, a filler id at the holes.
        slots: positions of each persona's words, by placeholder.
        words: positions of all other prompt tokens (no begin, end or padding).
    """

    ids: Tensor
    slots: dict[str, Tensor]
    words: Tensor


class Contexts(NamedTuple):
    """Cross-attention contexts, each ``B L C``: keys are made from the first, values from the second."""

    key: Tensor
    value: Tensor


def check_placeholders(prompt: str, placeholders: Sequence[str], where: str = "Persona: prompt") -> None:
    """Each placeholder must stand in the prompt exactly once."""
    for placeholder in placeholders:
        count = prompt.count(placeholder)
        if count != 1:
            raise bad_input(
                where,
                f"{prompt!r} with {placeholder!r} {count} times",
                f"{placeholder!r} exactly once",
                "Write the placeholder where the person belongs, e.g. 'a photo of "
                f"{placeholder} in the snow'. To show the person twice, make two pictures.",
            )


def split_prompt(prompt: str, placeholders: Sequence[str]) -> list[tuple[str, bool]]:
    """Cut a prompt at its placeholders: ``[(text, is_placeholder), ...]`` in order, empty texts left out."""
    parts: list[tuple[str, bool]] = [(prompt, False)]
    for placeholder in sorted(placeholders, key=len, reverse=True):
        cut: list[tuple[str, bool]] = []
        for text, taken in parts:
            if taken or placeholder not in text:
                cut.append((text, taken))
                continue
            before, after = text.split(placeholder, 1)
            cut += [(before, False), (placeholder, True), (after, False)]
        parts = cut
    return [(text, taken) for text, taken in parts if taken or text.strip()]


def lay_out(prompt: str, holes: Mapping[str, int], tokenizer: Tokenizer, filler: int) -> Layout:
    """Tokenise a prompt with ``holes[placeholder]`` positions left open for each placeholder.

    The open positions hold ``filler``, whose embedding is overwritten; it must not be the end token, behind which an
    encoder may pad in its own way.

    Raises:
        LikenessError: a placeholder is missing, doubled, or lies beyond the encoder's length.
    """
    check_placeholders(prompt, list(holes))
    if holes and filler == tokenizer.eos:
        raise ValueError("lay_out: the filler is the end token; expected any other, such as the begin token")
    ids, slots, words = [tokenizer.bos], {}, []
    for text, taken in split_prompt(prompt, list(holes)):
        start = len(ids)
        ids += [filler] * holes[text] if taken else tokenizer.pieces(text)
        if taken:
            slots[text] = torch.arange(start, len(ids))
        else:
            words += range(start, len(ids))
    room = tokenizer.length - 1
    for placeholder, positions in slots.items():
        if int(positions[-1]) >= room:
            raise bad_input(
                "Persona: prompt",
                f"{placeholder!r} at token {int(positions[-1])}",
                f"all its words within the first {room} tokens",
                "Move the placeholder towards the front of the prompt.",
            )
    ids = [*ids[:room], tokenizer.eos]
    ids += [tokenizer.pad] * (tokenizer.length - len(ids))
    return Layout(torch.tensor(ids), slots, torch.tensor([w for w in words if w < room], dtype=torch.long))


def plain_ids(prompts: Sequence[str], tokenizer: Tokenizer) -> Tensor:
    """Ordinary prompts -> ``B L`` ids, cut at the encoder's length."""
    return torch.stack([lay_out(prompt, {}, tokenizer, tokenizer.bos).ids for prompt in prompts])


def _index(sequence: Tensor, positions: Tensor) -> Tensor:
    """Positions ``B n`` or ``n`` as an index ``B n C`` into ``B L C``."""
    batch, _, width = sequence.shape
    positions = positions.to(sequence.device)
    positions = positions.expand(batch, -1) if positions.dim() == 1 else positions
    return positions[..., None].expand(-1, -1, width)


def splice(sequence: Tensor, positions: Tensor, vectors: Tensor) -> Tensor:
    """Overwrite positions of a sequence, out of place.

    Args:
        sequence: ``B L C``.
        positions: ``B n`` or ``n`` (the same for every sample).
        vectors: ``B n C``.
    """
    return sequence.scatter(1, _index(sequence, positions), vectors.to(sequence))


def take(sequence: Tensor, positions: Tensor) -> Tensor:
    """The inverse of :func:`splice`: ``B L C`` -> ``B n C``."""
    return sequence.gather(1, _index(sequence, positions))


@dataclass(frozen=True)
class Speaker:
    """Words, residuals and positions of one persona for one text encoder.

    ``positions`` is ``n`` or ``B n``, ``words`` ``B n C``, ``residual`` ``B n C`` or None, ``kept`` ``B`` or None.
    """

    positions: Tensor
    words: Tensor
    residual: Tensor | None = None
    kept: Tensor | None = None


def bend(hidden: Tensor, residual: Tensor, widths: Sequence[int]) -> Tensor:
    """``x <- |x| normalize(x + residual)``, per encoder: the residual turns a vector, it cannot make it louder."""
    return rescale(hidden + residual.to(hidden), part_lengths(hidden, widths), widths)


def bent_hidden(hidden: Tensor, speaker: Speaker, widths: Sequence[int]) -> Tensor:
    """``B L C`` with the persona's positions bent; samples not ``kept`` and a missing residual come back unchanged."""
    if speaker.residual is None:
        return hidden
    bent = splice(hidden, speaker.positions, bend(take(hidden, speaker.positions), speaker.residual, widths))
    return bent if speaker.kept is None else torch.where(speaker.kept[:, None, None].to(hidden.device), bent, hidden)


def encode(text: TextEncoder, ids: Tensor, speakers: Sequence[Speaker] = ()) -> Contexts:
    """Run the encoder on ``B L`` ids with personas speaking in their positions.

    Without speakers (or residuals) both contexts are the same tensor.
    """
    embeddings = text.embed(ids)
    for speaker in speakers:
        embeddings = splice(embeddings, speaker.positions, speaker.words)
    hidden = text.hidden(embeddings)
    key = text.final_norm(hidden)
    if all(speaker.residual is None for speaker in speakers):
        return Contexts(key, key)
    for speaker in speakers:
        hidden = bent_hidden(hidden, speaker, text.widths)
    return Contexts(key, text.final_norm(hidden))


def supercategory_embedding(text: TextEncoder, pieces: list[int], rule: str = "mean") -> Tensor:
    """``C`` embedding of a supercategory word.

    A word of several tokens is averaged (``mean``, keeps the mean length of its rows) or stands for its ``first``.
    """
    if not pieces:
        raise bad_input("Persona: supercategory", "an empty word", "a word such as face, cat or cup", "Give one.")
    rows = text.embed(torch.tensor([pieces]))[0].detach().float()  # P C
    if rule == "first":
        return rows[0]
    if rule != "mean":
        raise bad_input("Persona: subtokens", repr(rule), "'mean' or 'first'", "Pick one.")
    return rescale(rows.mean(dim=0), part_lengths(rows, text.widths).mean(dim=0), text.widths)
