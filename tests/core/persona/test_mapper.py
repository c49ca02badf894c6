"""The mapper against its formulae."""

from __future__ import annotations

import math

import pytest
import torch

from likeness.core.errors import LikenessError
from likeness.core.persona.mapper import Mapper, MapperConfig, anchor_timesteps, part_lengths, time_code

WORD = torch.linspace(-0.03, 0.04, 768)


def mapper(**changes) -> Mapper:
    torch.manual_seed(0)
    return Mapper(MapperConfig(**{"widths": (768,), **changes}), WORD)


def test_time_code_is_the_formula():
    t, i = 617.0, 700
    code = time_code(torch.tensor([t]))[0]
    rate = 10000 ** (-i / 1024)
    assert code.shape == (2048,)
    assert code[i].item() == pytest.approx(math.cos(t * rate), abs=1e-4)
    assert code[1024 + i].item() == pytest.approx(math.sin(t * rate), abs=1e-4)
    assert code.norm().item() == pytest.approx(32.0, rel=1e-5)


def test_released_size_and_start():
    made = mapper()
    assert sum(p.numel() for p in made.parameters()) == 1_344_200
    assert torch.equal(made.input_layer.weight, time_code(torch.arange(400, 800, 2)))
    assert made.input_layer.bias.abs().max() <= 1 / 32
    words = made(torch.tensor([400, 799])).words
    cosine = torch.nn.functional.cosine_similarity(words, WORD, dim=-1)
    assert cosine.abs().max() < 0.2, "the released mapper does not start at the supercategory"


@pytest.mark.parametrize("bounds", [(0, 1000), (317, 703)])
def test_anchors_span_any_range(bounds):
    anchors = anchor_timesteps(bounds, 200)
    assert anchors[0] == bounds[0] and anchors[-1] < bounds[1]
    assert torch.allclose(anchors.diff(), torch.full((199,), (bounds[1] - bounds[0]) / 200), atol=1e-3)


@pytest.mark.parametrize("tokens", [1, 4, 7])
@pytest.mark.parametrize("combination", ["offset", "concat"])
def test_words_have_the_length_of_the_supercategory(tokens, combination):
    out = mapper(tokens=tokens, combination=combination)(torch.tensor([401, 550, 798]), torch.randn(3, 512))
    assert out.words.shape == out.residual.shape == (3, tokens, 768)
    assert torch.allclose(out.words.norm(dim=-1), WORD.norm().expand(3, tokens), rtol=1e-5)


def test_two_encoders_keep_their_own_lengths():
    word = torch.cat([torch.full((32,), 0.1), torch.full((48,), 0.5)])
    made = Mapper(MapperConfig((32, 48), image_width=0), word)
    lengths = part_lengths(made(torch.tensor([500])).words, (32, 48))
    assert torch.allclose(lengths[0, 0], part_lengths(word, (32, 48)), rtol=1e-5)


def test_small_gain_starts_at_the_supercategory():
    words = mapper(head_gain=0.0)(torch.tensor([500.0])).words
    assert torch.allclose(words, WORD.expand_as(words), atol=1e-6)


def test_samples_of_a_batch_do_not_mix():
    made, image = mapper(), torch.randn(3, 512)
    t = torch.tensor([420, 600, 780])
    joined = made(t, image)
    for i in range(3):
        alone = made(t[i : i + 1], image[i : i + 1])
        assert torch.allclose(joined.words[i], alone.words[0], atol=1e-5)
        assert torch.allclose(joined.residual[i], alone.residual[0], atol=1e-5)


def test_residual_dropout_is_per_sample_and_all_or_nothing():
    made = mapper(residual_dropout=0.5)
    generator = torch.Generator().manual_seed(3)
    kept = made(torch.full((400,), 500), torch.randn(1, 512), generator).kept
    assert 150 < kept.sum() < 250
    assert made(torch.full((4,), 500), torch.randn(1, 512)).kept is None, "playing keeps every residual"


@pytest.mark.parametrize(
    "changes", [{"combination": "sum"}, {"tokens": 0}, {"bounds": (500, 500)}, {"bounds": (-1, 4)}, {"widths": ()}]
)
def test_bad_requests(changes):
    with pytest.raises(LikenessError):
        mapper(**changes)


def test_wrong_word_width():
    with pytest.raises(LikenessError, match="768"):
        Mapper(MapperConfig((1024,)), WORD)
