"""MagicFace on the miniature's trained weights, held-out people: identity rises over vanilla, the prompt still holds.

The bounds come from the spread over other held-out people (2 seeds, 12 steps, weights after 14,920 UNet steps at 128
pixels), mean and standard deviation of the change from vanilla. One concept, 24 people (case seed 5000): identity
similarity +0.61 and 0.198, skin and hair colour distance -0.161 and 0.075, prompt accuracy +0.015 and 0.069. The means
of 10 people scatter by a standard deviation over the square root of 10, so identity rises by more than 0.45, colour
falls by more than 0.10, and the prompt loses less than 0.04 (means less 2.5 of those). Two concepts, 16 pairs (case
seed 6000): identity +0.25 and 0.217, so over 16 pairs it rises by more than 0.11. The scene was right in
98% of vanilla's pictures and in all of MagicFace's, so more than 85% are asked for (chance 10%).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from likeness.core.magicface.request import MagicFaceRequest
from likeness.evaluation import magicface as measure
from likeness.miniature.pipeline import miniature

PEOPLE, SEEDS, STEPS = 10, (1, 2), 12
IDENTITY_GAIN, COLOUR_CHANGE, PROMPT_LOSS, SCENE = 0.45, -0.10, 0.04, 0.85
PAIRS, PAIR_GAIN = 16, 0.11


@pytest.fixture(scope="module")
def cases() -> list[measure.Case]:
    return measure.single_cases(PEOPLE, miniature().side, seed=1000)


@pytest.fixture(scope="module")
def outcomes(cases: list[measure.Case]) -> dict[str, list[measure.Outcome]]:
    variants = {name: measure.VARIANTS[name] for name in ("vanilla", measure.FULL)}
    return measure.measure(miniature(), cases, SEEDS, STEPS, variants)[1]


def test_identity_rises_over_vanilla(outcomes: dict[str, list[measure.Outcome]]) -> None:
    before, after = ([np.mean(o.identity) for o in outcomes[name]] for name in ("vanilla", measure.FULL))
    assert np.mean(after) - np.mean(before) > IDENTITY_GAIN


def test_skin_and_hair_come_closer(outcomes: dict[str, list[measure.Outcome]]) -> None:
    before, after = ([np.mean(o.colour) for o in outcomes[name]] for name in ("vanilla", measure.FULL))
    assert np.mean(after) - np.mean(before) < COLOUR_CHANGE


def test_the_prompt_still_holds(outcomes: dict[str, list[measure.Outcome]]) -> None:
    before, after = ([np.mean(o.prompt) for o in outcomes[name]] for name in ("vanilla", measure.FULL))
    assert np.mean(after) - np.mean(before) > -PROMPT_LOSS
    for name in ("vanilla", measure.FULL):
        assert np.mean([hits["scene"] for o in outcomes[name] for hits in o.hits]) > SCENE


def test_two_people_each_come_closer_to_their_own_reference() -> None:
    variants = {name: measure.VARIANTS[name] for name in ("vanilla", measure.FULL)}
    pairs = measure.pair_cases(PAIRS, miniature().side, seed=2000)
    outcomes = measure.measure(miniature(), pairs, SEEDS, STEPS, variants)[1]
    before, after = (np.mean([o.identity for o in outcomes[name]]) for name in variants)
    assert after - before > PAIR_GAIN


def test_no_reference_is_vanilla_bit_for_bit(cases: list[measure.Case], outcomes: dict) -> None:
    empty = miniature().generate(cases[0].prompt, SEEDS, MagicFaceRequest(references=()), STEPS)
    assert torch.equal(empty, outcomes["vanilla"][0].images)


def test_the_same_seeds_give_the_same_pictures(cases: list[measure.Case], outcomes: dict) -> None:
    again = measure.run_case(miniature(), cases[0], measure.VARIANTS[measure.FULL], SEEDS, STEPS,
                             measure.default_judge())
    assert torch.equal(again.images, outcomes[measure.FULL][0].images)
    assert not torch.equal(again.images, outcomes["vanilla"][0].images)
