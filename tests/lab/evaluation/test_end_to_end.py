"""MagicFace on the miniature's trained weights, held-out people: identity rises over vanilla, the prompt still holds.

The bounds come from the spread over held-out people, the tables "change from vanilla" of lab/miniature/report.md (2
seeds, 12 steps, weights after 22,401 UNet steps): mean less 2.5 standard errors of as many people as are drawn here.
One concept, 10 people: identity similarity +0.649 (standard deviation 0.260) over the report's 24 and +0.435 (0.274)
over 20 from this test's seed, whom vanilla resembles more by chance; of all 44 +0.552 (0.284), so it rises by more than
0.32; skin and hair colour distance -0.177 (0.118), so it falls by more than 0.08; prompt accuracy +0.007 (0.058), so
less than 0.04 is lost. The scene was right in 98% or more of the pictures of one concept, so more than 85% are asked
for (chance 11%).
Two concepts, 16 pairs: identity +0.396 (0.279), so it rises by more than 0.22; with regions given +0.594 (0.198), so by
more than 0.47, at prompt accuracy -0.052 (0.100), so less than 0.12 is lost.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lab import people
from lab.evaluation import magicface as measure
from likeness.core.magicface.request import MagicFaceRequest
from likeness.hosts.diffusers.miniature import miniature

PEOPLE, SEEDS, STEPS = 10, (1, 2), 12
IDENTITY_GAIN, COLOUR_CHANGE, PROMPT_LOSS, SCENE = 0.32, -0.08, 0.04, 0.85
PAIRS, PAIR_GAIN, PLACED_GAIN, PLACED_LOSS = 16, 0.22, 0.47, 0.12


@pytest.fixture(scope="module")
def cases() -> list[people.Case]:
    return people.single_cases(PEOPLE, miniature().side, seed=1000)


@pytest.fixture(scope="module")
def outcomes(cases: list[people.Case]) -> dict[str, list[measure.Outcome]]:
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
    pairs = people.pair_cases(PAIRS, miniature().side, seed=2000)
    outcomes = measure.measure(miniature(), pairs, SEEDS, STEPS, measure.GROUP_VARIANTS)[1]
    before, found, placed = (np.mean([o.identity for o in outcomes[name]]) for name in measure.GROUP_VARIANTS)
    assert found - before > PAIR_GAIN
    assert placed - before > PLACED_GAIN
    told, still = (np.mean([o.prompt for o in outcomes[name]]) for name in ("vanilla", measure.PLACED))
    assert still - told > -PLACED_LOSS


def test_no_reference_is_vanilla_bit_for_bit(cases: list[people.Case], outcomes: dict) -> None:
    empty = miniature().generate(cases[0].prompt, SEEDS, MagicFaceRequest(references=()), STEPS)
    assert torch.equal(empty, outcomes["vanilla"][0].images)


def test_the_same_seeds_give_the_same_pictures(cases: list[people.Case], outcomes: dict) -> None:
    again = measure.run_case(miniature(), cases[0], measure.VARIANTS[measure.FULL], SEEDS, STEPS,
                             measure.default_judge())
    assert torch.equal(again.images, outcomes[measure.FULL][0].images)
    assert not torch.equal(again.images, outcomes["vanilla"][0].images)
