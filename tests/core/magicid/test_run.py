"""A run: whose keys reach which row, where, and at which steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from likeness.core.attention import split_heads
from likeness.core.blocks import UNetLayout
from likeness.core.magicid.projections import IdentityAttention
from likeness.core.magicid.run import MagicIdRun, PlacedIdentity, project
from likeness.core.masks import Frame

LAYOUT = UNetLayout.from_counts(((1,), (1,)), (1,), ((1,), (1,)))
HEADS, WIDTH, CONTEXT = 2, 8, 6
SIGMAS = [4.0, 3.0, 2.0, 1.0, 0.0]
FINE = LAYOUT.blocks[0]


def person(seed, tokens=4, **more):
    g = torch.Generator().manual_seed(seed)
    return PlacedIdentity(torch.randn(tokens, CONTEXT, generator=g), torch.randn(2, CONTEXT, generator=g), **more)


def a_run(people, **more):
    torch.manual_seed(1)
    layers = IdentityAttention(dict.fromkeys(LAYOUT.blocks, WIDTH), CONTEXT).requires_grad_(False)
    return MagicIdRun(project(layers, people), people, LAYOUT, SIGMAS, **more), layers


def alone(layers, tokens, q):
    """Eq. 1's second term for one row."""
    k, v = (split_heads(x[None], HEADS) for x in layers.layer(FINE)(tokens))
    out = torch.nn.functional.scaled_dot_product_attention(split_heads(q, HEADS), k, v)
    return out.transpose(1, 2).flatten(2)


@pytest.fixture
def tensors():
    torch.manual_seed(2)
    return torch.randn(2, 16, WIDTH), torch.randn(2, 16, WIDTH)


def test_rows_get_the_identity_or_nobody(tensors):
    q, text = tensors
    ada = person(1)
    run, layers = a_run([ada])
    out = run.begin(4.0, [True, False], (4, 4)).add(FINE, q, text, HEADS)
    assert torch.allclose(out[:1], text[:1] + alone(layers, ada.tokens, q[:1]), atol=1e-5)
    assert torch.allclose(out[1:], text[1:] + alone(layers, ada.nobody, q[1:]), atol=1e-5)


@pytest.mark.parametrize("counts", [(4, 4), (4, 2)])
def test_two_people_in_their_regions(tensors, counts):
    q, text = tensors
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    people = [person(1, counts[0], region=left), person(2, counts[1], region=1 - left, scale=0.5)]
    run, layers = a_run(people)
    out = (run.begin(4.0, [True, True], (4, 4)).add(FINE, q, text, HEADS) - text).view(2, 4, 4, WIDTH)
    assert torch.allclose(out[:, :, :2], alone(layers, people[0].tokens, q).view(2, 4, 4, -1)[:, :, :2], atol=1e-5)
    expected = 0.5 * alone(layers, people[1].tokens, q).view(2, 4, 4, -1)
    assert torch.allclose(out[:, :, 2:], expected[:, :, 2:], atol=1e-5)


def test_a_row_that_shows_a_part_gets_that_part_of_the_masks(tensors):
    q, text = tensors
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    run, layers = a_run([person(1, region=left), person(2)])
    frames = [Frame(0, 0.5, 1, 0.5), None]
    out = run.begin(4.0, [True, True], (4, 4), frames).add(FINE, q, text, HEADS)
    only_second = text + alone(layers, run.people[1].tokens, q)
    assert torch.allclose(out, only_second, atol=1e-5)  # row 0 shows the right half; row 1 nobody knows where


def test_empty_masks_return_the_very_tensor(tensors):
    q, text = tensors
    run, _ = a_run([person(1, region=torch.zeros(3, 3))])
    assert run.begin(4.0, [True, False], (4, 4)).add(FINE, q, text, HEADS) is text


@pytest.mark.parametrize(
    "start, end, acting", [(0, 1, "1111"), (0, 0.5, "1100"), (0.25, 0.75, "0110"), (0.5, 0.5, "0000"), (1, 1, "0000")]
)
def test_start_and_end(start, end, acting):
    run, _ = a_run([person(1, start=start, end=end)])
    calls = [run.begin(sigma, [True], (4, 4)) for sigma in SIGMAS[:-1]]
    assert "".join(str(int(call is not None)) for call in calls) == acting


def test_scale_zero_is_no_call():
    assert a_run([person(1, scale=0)])[0].begin(4.0, [True], (4, 4)) is None
    assert a_run([person(1)], scale=0)[0].begin(4.0, [True], (4, 4)) is None


def test_tokens_of_no_grid_are_left_alone(tensors):
    q, text = tensors
    run, _ = a_run([person(1)])
    assert run.begin(4.0, [True, False], (4, 4)).add(FINE, q[:, :7], text[:, :7], HEADS) is not None
    call = run.begin(4.0, [True, False], (5, 7))
    assert call.add(FINE, q[:, :13], text[:, :13], HEADS).shape == (2, 13, WIDTH)
    one = run.begin(4.0, [True], (4, 4)).add(FINE, q, text, HEADS)
    assert one is text and "down0" in run.unfit


def test_repeated_tokens_of_several_photos(tensors):
    """All tokens of two photos: unconditional rows attend to nobody as often, which changes nothing."""
    q, text = tensors
    two = person(1, tokens=8)
    run, layers = a_run([two])
    out = run.begin(4.0, [False, False], (4, 4)).add(FINE, q, text, HEADS)
    assert torch.allclose(out, text + alone(layers, two.nobody, q), atol=1e-5)


def test_close_and_run_again(tensors):
    q, text = tensors
    run, _ = a_run([person(1), replace(person(2), name="b")])
    first = run.begin(2.0, [True, False], (4, 4)).add(FINE, q, text, HEADS)
    run.close()
    assert torch.equal(first, run.begin(2.0, [True, False], (4, 4)).add(FINE, q, text, HEADS))
