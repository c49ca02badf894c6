"""Prompts, conditioning and Tandem Equilibrium against transformers and materialised references."""

from __future__ import annotations

import pytest
import torch
from support.persona_tiny import WIDTH, WordTokenizer, tiny_text

from likeness.core.errors import LikenessError
from likeness.core.persona.clip import ClipText, JointText
from likeness.core.persona.prompts import STYLE_TEMPLATES, TANDEM_PROMPTS, TEMPLATES
from likeness.core.persona.tandem import TandemConfig, causal_attention, marked, tandem_loss, tandem_shares
from likeness.core.persona.text import Speaker, bend, encode, lay_out, plain_ids, splice, supercategory_embedding
from likeness.hosts.diffusers.persona import clip_text

TOKENIZER = WordTokenizer()


def test_layout():
    layout = lay_out("a photo of S* in snow", {"S*": 4}, TOKENIZER, 7)
    assert layout.slots["S*"].tolist() == [4, 5, 6, 7]
    assert layout.words.tolist() == [1, 2, 3, 8, 9]
    assert layout.ids.shape == (77,) and layout.ids[4:8].tolist() == [7] * 4
    assert layout.ids[0] == TOKENIZER.bos and layout.ids[10] == TOKENIZER.eos


def test_layout_of_two_personas():
    layout = lay_out("S1* beside S2*", {"S1*": 2, "S2*": 3}, TOKENIZER, 7)
    assert layout.slots["S1*"].tolist() == [1, 2] and layout.slots["S2*"].tolist() == [4, 5, 6]


@pytest.mark.parametrize("prompt", ["a photo of a man", "S* and S*", ""])
def test_placeholder_exactly_once(prompt):
    with pytest.raises(LikenessError, match="exactly once"):
        lay_out(prompt, {"S*": 4}, TOKENIZER, 7)


def test_placeholder_beyond_the_end():
    with pytest.raises(LikenessError, match="front of the prompt"):
        lay_out("word " * 74 + "S*", {"S*": 4}, TOKENIZER, 7)


def test_long_prompt_is_cut_behind_the_placeholder():
    layout = lay_out("S* " + "word " * 100, {"S*": 4}, TOKENIZER, 7)
    assert layout.ids[-1] == TOKENIZER.eos and layout.words.max() == 75


def test_walk_equals_transformers():
    model = tiny_text()
    ids = plain_ids(["a photo of a man", "snow"], TOKENIZER)
    with torch.no_grad():
        ours = encode(clip_text(model), ids)
        theirs = model(input_ids=ids).last_hidden_state
    assert torch.allclose(ours.key, theirs, atol=1e-5)
    assert ours.key is ours.value


def test_keys_and_values_split_only_from_the_persona_on():
    text = clip_text(tiny_text())
    layout = lay_out("a photo of S* in snow", {"S*": 2}, TOKENIZER, 7)
    words, residual = torch.randn(2, 2, WIDTH), torch.randn(2, 2, WIDTH)
    positions = layout.slots["S*"]
    with torch.no_grad():
        key, value = encode(text, layout.ids.expand(2, -1), [Speaker(positions, words, residual)])
    differs = (key != value).any(dim=-1)
    assert differs.nonzero()[:, 1].unique().tolist() == positions.tolist()


def test_value_is_the_formula():
    text = clip_text(tiny_text())
    ids = plain_ids(["a photo of x x"], TOKENIZER)
    words, residual, positions = torch.randn(1, 2, WIDTH), torch.randn(1, 2, WIDTH), torch.tensor([4, 5])
    with torch.no_grad():
        hidden = text.hidden(splice(text.embed(ids), positions, words))
        x = hidden[:, 4:6] + residual
        hidden[:, 4:6] = hidden[:, 4:6].norm(dim=-1, keepdim=True) * x / x.norm(dim=-1, keepdim=True)
        value = encode(text, ids, [Speaker(positions, words, residual)]).value
    assert torch.allclose(value, text.final_norm(hidden), atol=1e-5)


def test_dropped_residual_leaves_value_equal_key_bit_for_bit():
    text = clip_text(tiny_text())
    ids = plain_ids(["a photo of x"], TOKENIZER).expand(2, -1)
    kept = torch.tensor([True, False])
    speaker = Speaker(torch.tensor([4]), torch.randn(2, 1, WIDTH), torch.randn(2, 1, WIDTH), kept)
    with torch.no_grad():
        key, value = encode(text, ids, [speaker])
    assert torch.equal(key[1], value[1]) and not torch.equal(key[0], value[0])


def test_batch_of_different_prompts_equals_one_by_one():
    text = clip_text(tiny_text())
    prompts = ["a photo of S*", "S* wearing a red hat in the snow", "very old picture with S*"]
    layouts = [lay_out(p, {"S*": 2}, TOKENIZER, 7) for p in prompts]
    words, residual = torch.randn(3, 2, WIDTH), torch.randn(3, 2, WIDTH)
    positions = torch.stack([layout.slots["S*"] for layout in layouts])
    with torch.no_grad():
        joined = encode(text, torch.stack([x.ids for x in layouts]), [Speaker(positions, words, residual)])
        for i, layout in enumerate(layouts):
            speaker = Speaker(layout.slots["S*"], words[i : i + 1], residual[i : i + 1])
            alone = encode(text, layout.ids[None], [speaker])
            assert torch.allclose(joined.key[i], alone.key[0], atol=1e-5)
            assert torch.allclose(joined.value[i], alone.value[0], atol=1e-5)


def test_bend_turns_but_keeps_the_length():
    hidden, residual = torch.randn(2, 3, 80), torch.randn(2, 3, 80) * 9
    bent = bend(hidden, residual, (32, 48))
    assert torch.allclose(bent[..., :32].norm(dim=-1), hidden[..., :32].norm(dim=-1), rtol=1e-5)
    assert torch.allclose(bent[..., 32:].norm(dim=-1), hidden[..., 32:].norm(dim=-1), rtol=1e-5)


def test_supercategory_of_several_tokens():
    text = clip_text(tiny_text())
    rows = text.embed(torch.tensor([[9, 12]]))[0]
    first = supercategory_embedding(text, [9, 12], "first")
    mean = supercategory_embedding(text, [9, 12], "mean")
    assert torch.equal(first, rows[0])
    assert torch.nn.functional.cosine_similarity(mean, rows.mean(0), dim=0) > 0.9999
    assert mean.norm().item() == pytest.approx(rows.norm(dim=1).mean().item(), rel=1e-5)
    with pytest.raises(LikenessError):
        supercategory_embedding(text, [])


def test_two_encoders_are_walked_apart():
    one, two = tiny_text(0), tiny_text(1, width=64)
    both = JointText([clip_text(one), clip_text(two)], pads=(TOKENIZER.eos, 0), eos=TOKENIZER.eos)
    ids = plain_ids(["a photo of a man"], TOKENIZER)
    other = ids.clone()
    other[0, ids[0].tolist().index(TOKENIZER.eos) + 1 :] = 0
    with torch.no_grad():
        joined = encode(both, ids).key
        assert torch.allclose(joined[..., :WIDTH], encode(clip_text(one), ids).key, atol=1e-5)
        assert torch.allclose(joined[..., WIDTH:], encode(clip_text(two), other).key, atol=1e-5)


def test_penultimate_layer_without_norm():
    model = tiny_text()
    text = ClipText(getattr(model, "text_model", model), skip=1, normalised=False)
    ids = plain_ids(["a photo"], TOKENIZER)
    with torch.no_grad():
        theirs = model(input_ids=ids, output_hidden_states=True).hidden_states[-2]
        assert torch.allclose(encode(text, ids).key, theirs, atol=1e-5)


# --- Tandem Equilibrium -------------------------------------------------------------------------------------------


def materialised(model, ids, words, slots, columns, config):
    """Eq. 1 by the letter: eager float64 attention of the whole encoder, loops over heads and rows."""
    body = getattr(model, "text_model", model)
    model.config._attn_implementation = "eager"
    model.double()
    embeddings = body.embeddings.token_embedding(ids)
    rows = list(embeddings[0].unbind(0))
    for i, position in enumerate(slots.tolist()):
        rows[position] = words[i]
    attention = model_attention(body, torch.stack(rows)[None])[0]
    totals = attention.sum((0, 1))
    mine = max(slots.tolist(), key=lambda c: totals[c].item())
    other = max(columns.tolist(), key=lambda c: totals[c].item())
    first = second = 0.0
    heads, length, _ = attention.shape
    for h in range(heads):
        for r in range(length):
            pair = torch.stack([attention[h, r, mine], attention[h, r, other]]) * config.temperature
            share = pair.softmax(0)
            first, second = first + share[0], second + share[1]
    scale = heads * length if config.normalise else 1
    return -config.weight * (first / scale) * (second / scale)


def model_attention(body, embeddings):
    """Last layer's softmax weights, ``B H L L``, every step written out."""
    x = embeddings + body.embeddings.position_embedding.weight[: embeddings.shape[1]]
    for i, layer in enumerate(body.encoder.layers):
        inner, attn = layer.layer_norm1(x), layer.self_attn
        heads, width = attn.num_heads, attn.head_dim

        def split(y, heads=heads, width=width):
            return y.view(*y.shape[:2], heads, width).transpose(1, 2)

        q, k, v = split(attn.q_proj(inner)), split(attn.k_proj(inner)), split(attn.v_proj(inner))
        scores = q @ k.transpose(-1, -2) / width**0.5
        mask = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype).triu(1)
        weights = (scores + mask).softmax(-1)
        if i == len(body.encoder.layers) - 1:
            return weights
        x = x + attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.layer_norm2(x))
    raise AssertionError


@pytest.mark.parametrize("config", [TandemConfig(), TandemConfig.literal()], ids=["released", "literal"])
def test_gradient_against_a_materialised_float64_reference(config):
    layout = lay_out("S* wearing a hat in the snow", {"S*": 3}, TOKENIZER, 7)
    slots, columns = layout.slots["S*"], layout.words
    words = torch.randn(3, WIDTH, dtype=torch.float64) * 0.3
    reference = words.clone().requires_grad_()
    loss = materialised(tiny_text(), layout.ids[None], reference, slots, columns, config)
    loss.backward()
    ours = words.clone().requires_grad_()
    text = ClipText(getattr(m := tiny_text().double(), "text_model", m), dtype=torch.float64)
    queries, keys = text.last_queries_keys(splice(text.embed(layout.ids[None]), slots, ours[None]))
    result = tandem_loss(queries, keys, [slots], [columns], config)
    result.backward()
    assert result.item() == pytest.approx(loss.item(), rel=1e-9)
    assert torch.allclose(ours.grad, reference.grad, rtol=1e-7, atol=1e-12 * config.weight * 1e3)
    assert reference.grad.abs().max() > 0


def test_shares_add_up_and_the_loss_has_its_floor():
    attention = causal_attention(torch.randn(1, 12, 77, 64), torch.randn(1, 12, 77, 64))
    marks = marked([torch.tensor([5, 6])], 77), marked([torch.tensor([1, 2, 3])], 77)
    first, second = tandem_shares(attention, *marks, TandemConfig())
    assert (first + second).item() == pytest.approx(1.0, abs=1e-5)
    raw = tandem_shares(attention, *marks, TandemConfig.literal())
    assert sum(raw).item() == pytest.approx(12 * 77, rel=1e-5)
    q = torch.zeros(1, 12, 77, 64)
    flat = tandem_loss(q, q, [torch.tensor([2])], [torch.tensor([1])], TandemConfig())
    assert flat.item() == pytest.approx(-0.00025, rel=0.05)


def test_rows_that_see_neither_column_count_one_half():
    attention = causal_attention(torch.randn(1, 1, 10, 8), torch.randn(1, 1, 10, 8))
    config = TandemConfig.literal()
    marks = (marked([torch.tensor([position])], 10) for position in (6, 7))
    first, _ = tandem_shares(attention[:, :, :4], *marks, config)
    assert first.item() == pytest.approx(4 * 0.5)


def test_prompt_of_the_persona_alone_has_no_loss():
    q = torch.randn(1, 2, 10, 8, requires_grad=True)
    loss = tandem_loss(q, q, [torch.tensor([1])], [torch.tensor([], dtype=torch.long)], TandemConfig())
    assert loss.item() == 0
    loss.backward()


def test_prompt_sets():
    assert len(set(TANDEM_PROMPTS)) == 40 and len(set(TEMPLATES)) >= 27
    for prompt in (*TANDEM_PROMPTS, *TEMPLATES, *STYLE_TEMPLATES):
        assert prompt.count("{}") == 1
    common = {"a", "of", "the", "in", "with", "on", "as"}
    evaluation = ["hat", "construction", "magazine", "movie", "gown", "astronaut", "jacket", "jedi", "sombrero",
                  "farmer", "wizard", "comic", "sherlock", "ukiyo", "pilot", "plane", "selfie", "oil", "cowboy",
                  "chef", "cherry", "vintage", "book", "camo", "jungle"]  # fmt: skip
    words = {w for prompt in TANDEM_PROMPTS for w in prompt.lower().split()} - common
    assert not words & set(evaluation)
