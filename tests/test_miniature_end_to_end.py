"""MagicFace on the miniature's trained weights, held-out people: identity rises over vanilla, the prompt still holds.

The bounds come from measured spread. With 5 people, 2 seeds, 12 steps and the weights after 4,340 UNet steps at 128
pixels, four disjoint sets of people (case seeds 1000, 3000, 3100, 3200) gave identity gains of 0.116, 0.121, 0.166 and
0.092 (mean 0.124, standard deviation 0.031) and prompt changes of +0.027, +0.036, -0.039 and -0.039 (mean -0.004,
standard deviation 0.041). Both bounds are the mean less two standard deviations. The scene was right in all pictures of
the first set (chance 0.1), so half is asked for.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from likeness.core.magicface.request import MagicFaceRequest
from likeness.evaluation import magicface as measure
from likeness.miniature.pipeline import miniature

PEOPLE, SEEDS, STEPS = 5, (1, 2), 12
IDENTITY_GAIN, PROMPT_LOSS, SCENE = 0.06, 0.086, 0.5


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


def test_the_prompt_still_holds(outcomes: dict[str, list[measure.Outcome]]) -> None:
    before, after = ([np.mean(o.prompt) for o in outcomes[name]] for name in ("vanilla", measure.FULL))
    assert np.mean(after) - np.mean(before) > -PROMPT_LOSS
    for name in ("vanilla", measure.FULL):
        assert np.mean([hits["scene"] for o in outcomes[name] for hits in o.hits]) > SCENE


def test_no_reference_is_vanilla_bit_for_bit(cases: list[measure.Case], outcomes: dict) -> None:
    empty = miniature().generate(cases[0].prompt, SEEDS, MagicFaceRequest(references=()), STEPS)
    assert torch.equal(empty, outcomes["vanilla"][0].images)


def test_the_same_seeds_give_the_same_pictures(cases: list[measure.Case], outcomes: dict) -> None:
    again = measure.run_case(miniature(), cases[0], measure.VARIANTS[measure.FULL], SEEDS, STEPS,
                             measure.default_judge())
    assert torch.equal(again.images, outcomes[measure.FULL][0].images)
    assert not torch.equal(again.images, outcomes["vanilla"][0].images)
