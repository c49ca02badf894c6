"""A persona and MagicFace on one model: the words of the one, the self-attention of the other."""

from __future__ import annotations

import pytest
import torch
from support.attention import head_mean
from support.comfy import magicface, tiny
from support.comfy.persona import PLAIN, PROMPT, WORDS, chain

from likeness.core.magicface.call import MagicFaceCall
from likeness.core.magicface.maps import MapBuilder
from likeness.core.magicface.run import Capture
from likeness.hosts.comfy.persona import apply as comfy_persona
from likeness.hosts.comfy.persona.text import mark_prompt
from likeness.hosts.comfy.persona.token_map import prompt_token_map

FACE, SNOW = 4, 7  # positions in the plain prompt
SPOKEN_FACE, SPOKEN_SNOW = [4, 5, 6, 7], [10]


def both(parts, names=("face",), *, weight=3.0, magicface_first=True, alpha=0.4):
    """Model and positive conditioning with MagicFace below or above the persona."""
    references = magicface.chain(*names, mask=magicface.box(), weight=weight)
    if magicface_first:
        below = magicface.apply(parts, references, PLAIN, alpha=alpha).model
        return comfy_persona.apply(below, parts.clip, chain(), PROMPT)
    below, positive = comfy_persona.apply(parts.model, parts.clip, chain(), PROMPT)
    return magicface.apply(parts, references, PLAIN, model=below, alpha=alpha).model, positive


def sample(parts, model, positive):
    return tiny.sample(model, positive, parts.negative, steps=4)


def plain(parts):
    return parts.clip.encode_from_tokens_scheduled(parts.clip.tokenize(PLAIN))


@pytest.mark.parametrize("magicface_first", [True, False])
@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_both_act_whatever_the_order(parts, magicface_first, alpha):
    model, positive = both(parts, magicface_first=magicface_first, alpha=alpha)
    together = sample(parts, model, positive)
    persona_alone = sample(parts, *comfy_persona.apply(parts.model, parts.clip, chain(), PROMPT))
    magicface_alone = sample(parts, model, plain(parts))
    for alone in (persona_alone, magicface_alone):
        assert (together - alone).norm() > 1e-2 * together.norm()
    assert torch.equal(together, sample(parts, *both(parts, magicface_first=not magicface_first, alpha=alpha)))


@pytest.mark.parametrize("magicface_first", [True, False])
def test_magicface_of_no_weight_is_the_persona_alone_bit_for_bit(parts, magicface_first):
    silent = sample(parts, *both(parts, weight=0.0, magicface_first=magicface_first))
    alone = sample(parts, *comfy_persona.apply(parts.model, parts.clip, chain(), PROMPT))
    assert torch.equal(silent, alone)


@pytest.mark.parametrize("prompt, told", [(PROMPT, False), ("a drawing of S* on a beach", True)])
def test_a_prompt_that_is_not_magicfaces_is_told_once_a_run(parts, prompt, told, caplog):
    model, _ = both(parts)
    _, positive = comfy_persona.apply(parts.model, parts.clip, chain(), prompt)
    with caplog.at_level("WARNING", logger="likeness"):
        sample(parts, model, positive)
    assert caplog.text.count("is not the prompt that MagicFace Apply has encoded") == told


@pytest.mark.parametrize("magicface_first", [True, False])
def test_concepts_are_found_in_the_spoken_words(parts, magicface_first, monkeypatch):
    """The map's columns of 'face' and 'snow' are the attention to the persona's words and to the moved word."""
    looked, added = [], []
    look, add = MagicFaceCall.cross_attention, MapBuilder.add

    def spy_look(call, block, q, k, heads, places=None):
        row = next(row for row in call._watched if call.conditional[row])
        looked.append((q[row], k[row], heads, places, call._watched.index(row)))
        look(call, block, q, k, heads, places)

    def spy_add(builder, q, k, cross, heads, grid):
        added.append(cross)
        add(builder, q, k, cross, heads, grid)

    monkeypatch.setattr(MagicFaceCall, "cross_attention", spy_look)
    monkeypatch.setattr(MapBuilder, "add", spy_add)
    model, positive = both(parts, ("face", "snow"), magicface_first=magicface_first, alpha=0.0)
    sample(parts, model, positive)
    speaking = 0
    for (q, k, heads, places, row), columns in zip(looked, added, strict=True):
        cross = head_mean(q, k, heads)
        spoken = places is not None and any(place is not None for place in places)
        speaking += spoken
        face, snow = (SPOKEN_FACE, SPOKEN_SNOW) if spoken else ([FACE], [SNOW])
        torch.testing.assert_close(columns[row, :, 0], cross[:, face].sum(-1))
        torch.testing.assert_close(columns[row, :, 1], cross[:, snow].sum(-1))
        torch.testing.assert_close(columns[row].sum(-1), torch.ones(cross.shape[0]))
        if spoken:
            assert [place is not None for place in places].count(True) == 1, "only the conditional row speaks"
    assert 0 < speaking < len(looked), "the plain word first, the persona's words later"


def test_references_keep_the_plain_words(parts, monkeypatch):
    """What the reference pass hands over is the same with a persona in the picture's prompt and without."""
    stored: list[tuple[torch.Tensor, torch.Tensor]] = []
    store = Capture.store

    def spy(capture, block, k, v):
        stored.append((k.clone(), v.clone()))
        store(capture, block, k, v)

    monkeypatch.setattr(Capture, "store", spy)
    sample(parts, *both(parts))
    with_persona = stored[:]
    stored.clear()
    applied = magicface.apply(parts, magicface.chain("face", mask=magicface.box()), PLAIN)
    sample(parts, applied.model, plain(parts))
    assert len(stored) == len(with_persona) > 0
    for ours, theirs in zip(with_persona, stored, strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


# --- the places themselves


@pytest.mark.parametrize(
    ("prompt", "supercategory"),
    [
        (PROMPT, "face"),
        ("(S*:1.3) and a (red hat:0.8)", "old man"),
        ("a very long road with trees " * 14 + "and S* in the snow", "face"),  # the persona crosses into a new window
        ("dog " * 72 + "S* in the snow", "extraordinary photographer"),
        ("a photo of (S*:1.3) in the snow", "man (young)"),
    ],
)
def test_every_token_stands_for_one_of_its_like(parts, prompt, supercategory):
    personas = chain(supercategory)
    shares = prompt_token_map(parts.clip, prompt, personas)
    written = supercategory.replace("(", "\\(").replace(")", "\\)")  # brackets of the word, not weights
    text = prompt.replace("S*", written)
    marked = mark_prompt(parts.clip, prompt, personas)["l"]
    both_texts = marked.chunks, parts.clip.tokenize(text)["l"]
    assert shares.shape == tuple(sum(map(len, chunks)) for chunks in both_texts)
    torch.testing.assert_close(shares.sum(1), torch.ones(shares.shape[0]))
    spoken, own = ([t for chunk in chunks for t, _ in chunk] for chunks in both_texts)
    places = [77 * c + i for c, i in marked.places["S*"]]
    word = [token for token, _ in parts.clip.tokenize(written)["l"][0] if token < 49406]
    assert len(places) == WORDS
    for row, token in enumerate(spoken):
        whole = (shares[row] == 1).nonzero().flatten().tolist()
        if not (whole and own[whole[0]] == token):
            assert row in places
            assert [own[i] for i in shares[row].nonzero().flatten()] == word


def test_a_placeholder_inside_a_word_has_no_places(parts):
    assert prompt_token_map(parts.clip, "a photo of xS*y", chain()) is None
