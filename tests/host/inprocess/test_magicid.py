"""MagicID's identities in the host's UNet: where they act, where they do not, and what they leave behind."""

from __future__ import annotations

import pytest
import torch
from support.comfy import tiny
from support.comfy.magicface import PROMPT
from support.comfy.magicid import halves, people

from likeness.core.errors import LikenessError
from likeness.hosts.comfy.magicid.apply import How, apply
from likeness.hosts.comfy.magicid.identities import Identities, blend
from likeness.hosts.comfy.text import encode

#: Latents of the tiny model are about a hundred; rounding is told as a share of their deviation.
ROUNDING, EFFECT = 5e-4, 1e-2


def apart(a, b):
    return float((a - b).abs().max() / b.std())


def put_on(model, some, regions=None, **how):
    return apply(model, some, regions, How(**how)).model


def drawn(parts, model, **more):
    return tiny.sample(model, encode(parts.clip, PROMPT).conditioning, parts.negative, **more)


@pytest.mark.parametrize("case", ["zero masks", "strength", "scales", "nobody"])
def test_nothing_is_vanilla_bit_for_bit(parts, case):
    some = people(parts.model, 0.0, 0.0) if case == "scales" else people(parts.model, 1.0, 1.0)
    regions = torch.zeros(2, 5, 7) if case == "zero masks" else None
    some = None if case == "nobody" else some
    patched = put_on(parts.model, some, regions, strength=0.0 if case == "strength" else 1.0)
    assert torch.equal(drawn(parts, patched), drawn(parts, parts.model))


def test_an_identity_changes_the_picture_and_leaves_the_model_as_it_was(parts):
    before = drawn(parts, parts.model)
    patched = put_on(parts.model, people(parts.model, 1.0))
    first = drawn(parts, patched)
    assert apart(first, before) > EFFECT
    assert torch.equal(drawn(parts, patched), first) and torch.equal(drawn(parts, parts.model), before)
    assert "likeness_magicid" not in patched.model_options["transformer_options"]


def test_rows_of_a_batch_and_one_by_one_agree(parts):
    patched = put_on(parts.model, people(parts.model, 1.0, 0.5), halves())
    both = drawn(parts, patched, batch=2)
    alone = torch.cat([drawn(parts, patched, seed=seed) for seed in (0, 1)])
    assert apart(both, alone) < ROUNDING


def test_regions_tell_people_apart(parts):
    some, masks = people(parts.model, 1.0, 1.0), halves()
    one = drawn(parts, put_on(parts.model, some, masks))
    other = drawn(parts, put_on(parts.model, some, masks.flip(0)))
    assert apart(one, other) > EFFECT


def test_the_middle_block_can_be_left_out(parts):
    some = people(parts.model, 1.0)
    with_it, without = (drawn(parts, put_on(parts.model, some, middle=m)) for m in (True, False))
    assert apart(with_it, without) > ROUNDING


def test_the_lora_inside_reaches_every_projection(parts):
    some = people(parts.model, 0.0, lora=True)
    off, on = (put_on(parts.model, some, lora=s) for s in (0.0, 1.0))
    assert torch.equal(drawn(parts, off), drawn(parts, parts.model))
    assert len(on.patches) == 16 * 2 * 4
    assert apart(drawn(parts, on), drawn(parts, parts.model)) > EFFECT


def test_more_people_than_regions_and_the_reverse(parts):
    with pytest.raises(LikenessError, match="2 regions for 1 identities"):
        put_on(parts.model, people(parts.model, 1.0), halves())
    with pytest.raises(LikenessError, match="1 regions for 2"):
        put_on(parts.model, people(parts.model, 1.0, 1.0), halves()[:1])


def test_blending(parts):
    some = people(parts.model, 1.0, 1.0)
    one, two = (Identities(some.loaded, (person,)) for person in some.people)
    assert torch.equal(blend(one, two, 0.0, "").people[0].tokens, one.people[0].tokens)
    assert blend(one, two, 0.5, "").people[0].name == "p0 + p1"
    with pytest.raises(LikenessError, match="nobody"):
        blend(one, Identities(some.loaded), 0.5, "")


def test_diir_takes_identities(parts):
    from support.comfy.diir import job, repaired, same_outside

    some = people(parts.model, 1.0)
    the_job = job(parts, identities=some)
    with_them, without = repaired(the_job), repaired(job(parts))
    assert same_outside(with_them, the_job.image) and same_outside(without, the_job.image)
    assert not torch.equal(with_them.image, without.image)
    assert with_them.faces[0].person == "p0" and without.faces[0].person is None
