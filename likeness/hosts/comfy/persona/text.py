"""ComfyUI's text encoders with personas in the prompt.

The host's own tokenizer and its own ``encode_token_weights`` do the work, so weights like ``(S*:1.2)``, prompts over 77
tokens, embeddings, CLIP skip and LoRA mean what they mean everywhere. Only two things are ours: the personas' words
are put in as embeddings, and the conditioning layer is bent before the final norm when values are read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.model_management as management
import torch

from ....core.errors import bad_input
from ....core.persona.persona import Persona
from ....core.persona.text import Contexts, Speaker, bent_hidden

NODE = "Persona Apply"
#: Prompt encoders the persona can speak to, in the order in which their outputs are joined.
ENCODERS = ("l", "g", "h")
#: Plain words, one token each in CLIP's vocabulary, that hold the persona's place while a prompt is tokenised.
MARKS = ("zebra", "walnut", "violin", "piano", "tractor", "rocket", "penguin", "cactus", "helmet", "camel")


@dataclass(frozen=True)
class NamedPersona:
    """A persona and the placeholder it answers to in a prompt."""

    placeholder: str
    persona: Persona


Personas = tuple[NamedPersona, ...]


def join(chain: Personas | None, item: NamedPersona, source: str) -> Personas:
    """Add a persona to a chain; ``source`` names the node and the input in errors.

    Raises:
        LikenessError: the placeholder is empty, taken, or has characters the prompt syntax uses.
    """
    name = item.placeholder.strip()
    if not name or any(c in name for c in "(){}[]:\\") or any(name == other.placeholder for other in chain or ()):
        raise bad_input(
            source,
            repr(item.placeholder),
            "a name of its own without brackets or colons",
            "Write S* for one persona, S1* and S2* for two.",
        )
    return (*(chain or ()), NamedPersona(name, item.persona))


def encoder_names(clip: Any, source: str = f"{NODE}: clip") -> tuple[str, ...]:
    """Which of :data:`ENCODERS` this CLIP has, in joining order; ``source`` names the node and the input in errors.

    Raises:
        LikenessError: the text encoder is not CLIP (T5, an LLM).
    """
    names = tuple(clip.tokenize(""))
    if not names or any(name not in ENCODERS for name in names):
        raise bad_input(source, f"text encoders {names}", "CLIP as in SD1.x, SD2.x, SDXL", "Use such a model.")
    return tuple(name for name in ENCODERS if name in names)


def inner_encoder(clip: Any, name: str) -> Any:
    """The host's ``SDClipModel`` of that name."""
    return getattr(clip.cond_stage_model, f"clip_{name}")


def token_table(clip: Any, name: str) -> torch.Tensor:
    """The word embeddings ``V C`` of the text encoder of that name."""
    return inner_encoder(clip, name).transformer.get_input_embeddings().weight


def text_widths(clip: Any, source: str = f"{NODE}: clip") -> tuple[int, ...]:
    """Width of each text encoder, in joining order."""
    return tuple(token_table(clip, name).shape[1] for name in encoder_names(clip, source))


class _BentTransformer:
    """The host's text model whose conditioning layer can be bent before the final norm.

    One pass of the encoder serves the key and the value reading: its outputs are kept between the two.
    """

    def __init__(self, transformer: Any, speakers: Sequence[Speaker], width: int) -> None:
        self.transformer, self.speakers, self.width = transformer, speakers, width
        self.bent = False
        self.outputs: tuple | None = None

    def get_input_embeddings(self) -> Any:
        """The host asks for it when it embeds tokens."""
        return self.transformer.get_input_embeddings()

    def __call__(
        self,
        ids: Any,
        mask: Any,
        *,
        intermediate_output: int | None = None,
        final_layer_norm_intermediate: bool = True,
        **rest: Any,
    ) -> tuple:
        layer = -1 if intermediate_output is None else intermediate_output
        if not isinstance(layer, int):
            raise bad_input(f"{NODE}: clip", f"layers {layer!r}", "one conditioning layer", "Use a CLIP of SD or SDXL.")
        if self.outputs is None:
            self.outputs = self.transformer(
                ids, mask, intermediate_output=layer, final_layer_norm_intermediate=False, **rest
            )
        last, hidden, *pooled = self.outputs
        if self.bent:
            hidden = self._bend(hidden)
        norm = self.transformer.text_model.final_layer_norm
        if intermediate_output is None:
            return (norm(hidden), None, *pooled)
        # the host weights what it gets in place, so it never gets the kept one
        return (last, norm(hidden) if final_layer_norm_intermediate else hidden.clone(), *pooled)

    def _bend(self, hidden: torch.Tensor) -> torch.Tensor:
        for speaker in self.speakers:
            if speaker.residual is None:
                continue
            rows = speaker.kept.nonzero().flatten()  # the sections this persona stands in
            residual = speaker.residual[rows.to(speaker.residual.device)].to(hidden)
            one = Speaker(speaker.positions[rows], residual, residual)
            rows = rows.to(hidden.device)
            hidden = hidden.index_copy(0, rows, bent_hidden(hidden[rows], one, (self.width,)))
        return hidden


Tokens = list[list[tuple[Any, float]]]


@dataclass(frozen=True)
class Marked:
    """One encoder's tokenised prompt in which marks hold the personas' places.

    Attributes:
        chunks: the host's chunks of (token, weight).
        places: per placeholder its words' places (chunk, index), in order.
    """

    chunks: Tokens
    places: dict[str, list[tuple[int, int]]]


def mark_prompt(clip: Any, prompt: str, personas: Personas) -> dict[str, Marked]:
    """Tokenise with the host's own tokenizer (weights, chunks of 77) and find where the personas' words belong."""
    marked, idents = marked_text(clip, prompt, personas)
    return {
        name: Marked(chunks, {placeholder: _places(chunks, ident) for placeholder, ident in idents.items()})
        for name, chunks in clip.tokenize(marked).items()
    }


def marked_text(clip: Any, prompt: str, personas: Personas) -> tuple[str, dict[str, int]]:
    """The prompt with a mark for each word of each persona, and the marks' token ids by placeholder."""
    idents, marked = {}, prompt
    for item, (word, ident) in zip(longest_first(personas), _choose_marks(clip, prompt, len(personas)), strict=True):
        marked = marked.replace(item.placeholder, " ".join([word] * item.persona.tokens))
        idents[item.placeholder] = ident
    return marked, idents


def plain_text(prompt: str, personas: Personas) -> str:
    """The prompt with each persona's plain word."""
    for item in longest_first(personas):
        prompt = prompt.replace(item.placeholder, written(item.persona.supercategory))
    return prompt


def written(supercategory: str) -> str:
    """A plain word as prompts have it: brackets that are part of it, as in ``man (young)``, are no weights."""
    return supercategory.replace("(", "\\(").replace(")", "\\)")


def unwritten(supercategory: str) -> str:
    """A plain word as it is, where somebody has written it as prompts have it."""
    return supercategory.strip().replace("\\(", "(").replace("\\)", ")")


def longest_first(personas: Personas) -> list[NamedPersona]:
    """In an order in which no placeholder is taken for the beginning of another."""
    return sorted(personas, key=lambda p: -len(p.placeholder))


def _places(chunks: Tokens, ident: int) -> list[tuple[int, int]]:
    return [
        (c, i)
        for c, chunk in enumerate(chunks)
        for i, (token, _) in enumerate(chunk)
        if not torch.is_tensor(token) and token == ident
    ]


def _choose_marks(clip: Any, prompt: str, count: int) -> list[tuple[str, int]]:
    """Words of one token that the prompt does not contain, and their ids."""

    def ids(text: str) -> list[Any]:
        return [token for chunk in next(iter(clip.tokenize(text).values())) for token, _ in chunk]

    end, taken, chosen = ids("")[1], [t for t in ids(prompt) if not torch.is_tensor(t)], []
    for word in MARKS:
        _, ident, behind, *_rest = ids(word)
        if behind == end and ident not in taken:
            chosen.append((word, ident))
    if len(chosen) < count:
        raise bad_input(f"{NODE}: prompt", f"{count} personas", f"at most {len(chosen)}", "Use fewer personas.")
    return chosen[:count]


#: Shares of the sampling, 0 to 1, between which a CLIP's scheduled hooks stay as they are.
Range = tuple[float, float]


def encode_at(
    clip: Any,
    marked: Mapping[str, Marked],
    personas: Personas,
    timesteps: torch.Tensor,
    hooks_range: Range | None = None,
) -> Contexts:
    """Contexts of ``S`` timesteps in one batch of each text encoder, as the host encodes prompts: ``S L C``.

    Args:
        hooks_range: one of the ranges of a CLIP whose hooks follow a schedule.
    """
    _prepare(clip)
    with _hooks_in(clip, hooks_range):
        return _encode(clip, marked, personas, timesteps)


@contextmanager
def _hooks_in(clip: Any, hooks_range: Range | None) -> Iterator[None]:
    """While the context is open a CLIP's scheduled hooks (LoRA on the text encoder) are as in one of their ranges."""
    hooks = clip.patcher.forced_hooks
    if hooks is None or hooks_range is None:
        yield
        return
    hooks.reset()
    clip.patcher.patch_hooks(None)
    keyframes = next((frames for found, frames in hooks.get_hooks_for_clip_schedule() if found == hooks_range), ())
    for hook, keyframe in keyframes:
        hook.hook_keyframe._current_keyframe = keyframe
    clip.patcher.patch_hooks(hooks)
    try:
        yield
    finally:
        hooks.reset()


def _encode(clip: Any, marked: Mapping[str, Marked], personas: Personas, timesteps: torch.Tensor) -> Contexts:
    names, widths = encoder_names(clip), list(text_widths(clip))
    device = clip.patcher.load_device
    spoken = {p.placeholder: _speak(p.persona, timesteps, widths) for p in personas}
    context = management.cuda_device_context(device) if hasattr(management, "cuda_device_context") else nullcontext()
    with context:
        pairs = [
            _encode_one(inner_encoder(clip, n), marked[n], {k: v[i] for k, v in spoken.items()}, len(timesteps), w)
            for i, (n, w) in enumerate(zip(names, widths, strict=True))
        ]
    length = min(key.shape[1] for key, _ in pairs)
    return Contexts(*(torch.cat([pair[k][:, :length] for pair in pairs], dim=-1) for k in (0, 1)))


def _prepare(clip: Any) -> None:
    """What the host does before it encodes: options, loading, device."""
    model = clip.cond_stage_model
    model.reset_clip_options()
    if clip.layer_idx is not None:
        model.set_clip_options({"layer": clip.layer_idx})
    clip.load_model()
    model.set_clip_options({"execution_device": clip.patcher.load_device})


def _speak(persona: Persona, timesteps: torch.Tensor, widths: list[int]) -> list[tuple[torch.Tensor, Any]]:
    """Words and residuals per encoder, each ``S n C``."""
    device = persona.mapper.supercategory.device
    speaker = persona.speaker(timesteps.to(device), torch.arange(persona.tokens))
    words = speaker.words.split(widths, dim=-1)
    residual = [None] * len(widths) if speaker.residual is None else speaker.residual.split(widths, dim=-1)
    return list(zip(words, residual, strict=True))


def _encode_one(encoder: Any, marked: Marked, spoken: Mapping[str, tuple], steps: int, width: int) -> Contexts:
    chunks = len(marked.chunks)
    sections: Tokens = [list(chunk) for _ in range(steps) for chunk in marked.chunks]
    for placeholder, (words, _) in spoken.items():
        for s in range(steps):
            for n, (c, i) in enumerate(marked.places[placeholder]):
                row = sections[s * chunks + c]
                row[i] = (words[s, n], row[i][1])
    speakers = [_rows(marked.places[p], residual, steps, chunks) for p, (_, residual) in spoken.items()]
    reader = copy.copy(encoder)  # shares all weights; only its way to the transformer is another
    bent = _BentTransformer(encoder.transformer, speakers, width)
    reader.__dict__["transformer"] = bent
    key = reader.encode_token_weights(sections)[0]
    bent.bent = True
    value = reader.encode_token_weights(sections)[0]
    return Contexts(*(x.reshape(steps, -1, x.shape[-1]) for x in (key, value)))


def _rows(places: list[tuple[int, int]], residual: Any, steps: int, chunks: int) -> Speaker:
    """One persona's residuals laid out over sections: ``R 1 C`` one word at a time would be slow, so rows are whole.

    A persona whose words fall into two chunks bends each chunk's part; positions outside a chunk repeat its first one.
    """
    sections = steps * chunks
    if residual is None:
        return Speaker(torch.zeros(sections, 1, dtype=torch.long), torch.empty(0))
    count = len(places)
    positions = torch.zeros(sections, count, dtype=torch.long)
    spread = residual.new_zeros(sections, count, residual.shape[-1])
    kept = torch.zeros(sections, dtype=torch.bool)
    for c in sorted({c for c, _ in places}):
        inside = [(n, i) for n, (at, i) in enumerate(places) if at == c]
        filled = inside + [inside[0]] * (count - len(inside))
        rows = torch.arange(steps) * chunks + c
        positions[rows] = torch.tensor([i for _, i in filled])
        spread[rows] = residual[:, [n for n, _ in filled]]
        kept[rows] = True
    return Speaker(positions, torch.empty(0), spread, kept)


class TokenizerAdapter:
    """The host's CLIP tokenizer as the core's :class:`~likeness.core.persona.text.Tokenizer`."""

    def __init__(self, clip: Any, source: str = f"{NODE}: clip") -> None:
        self.inner = getattr(clip.tokenizer, f"clip_{encoder_names(clip, source)[0]}")
        self.bos, self.eos = self.inner.start_token, self.inner.end_token
        self.pad, self.length = self.inner.pad_token, self.inner.max_length

    def pieces(self, text: str) -> list[int]:
        """Ids without begin and end."""
        end = -1 if self.inner.tokenizer_adds_end_token else None
        return list(self.inner.tokenizer(text)["input_ids"][self.inner.tokens_start : end])
