"""The shipped identity weights: what they hold, and that they do what they are for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lab.evaluation.magicid import GROUPS, SINGLE, Lab, measure_group, measure_single, rivals_of
from lab.people import pair_cases, single_cases
from likeness.formats.identity import MAGICID, load_identity_weights
from likeness.formats.magicid import load_magicid
from likeness.hosts.diffusers.common import unet_layout
from likeness.hosts.diffusers.magicid import load_control
from likeness.hosts.diffusers.miniature import miniature
from likeness.miniature.models import weights_file

PEOPLE, PAIRS, STEPS = 6, 4, 10


@pytest.fixture(scope="module")
def lab() -> Lab:
    weights, pipeline = load_magicid(weights_file("magicid")), miniature()
    return Lab(pipeline, weights, load_control(pipeline.unet, weights), STEPS)


def test_the_file_is_small_and_whole(lab):
    assert weights_file("magicid").stat().st_size <= 14e6
    unet = unet_layout(lab.pipeline.unet)
    assert lab.weights.attention["unet"].blocks == unet.blocks
    assert lab.weights.attention["control"].blocks == tuple(b for b in unet.blocks if b.section != "up")
    assert lab.weights.embedder == "miniature" and set(lab.weights.modes) == {"landmarks", "skeleton"}
    assert all(torch.isfinite(value).all() for value in lab.weights.control.values())
    assert load_identity_weights(weights_file("magicid")).form == MAGICID


def test_one_person_is_known_and_the_prompt_kept(lab):
    cases = single_cases(PEOPLE, lab.pipeline.side)
    rivals = rivals_of(lab, cases)
    seen = {
        name: [measure_single(lab, case, lab.draw(case, [1], SINGLE[name]), rivals) for case in cases]
        for name in ("vanilla", "UNet")
    }
    means = {name: np.mean([case.similarity for case in found]) for name, found in seen.items()}
    prompts = {name: np.mean([case.prompt for case in found]) for name, found in seen.items()}
    assert means["UNet"] >= 0.3 and means["UNet"] >= means["vanilla"] + 0.15, means
    assert prompts["UNet"] >= prompts["vanilla"] - 0.1, prompts


def test_two_people_stay_apart(lab):
    cases = pair_cases(PAIRS, lab.pipeline.side)
    found = [measure_group(lab, case, lab.draw(case, [1], GROUPS["MGMICA"])) for case in cases]
    own, other, wrong = ([v for f in found for v in getattr(f, part)] for part in ("own", "other", "wrong"))
    assert len(own) >= PAIRS and np.mean(own) >= 0.2 and np.mean(own) >= np.mean(other) + 0.15
    assert sum(wrong) <= 0.3 * len(wrong)
