"""Drawn people: what is told of their bodies."""

from __future__ import annotations

import random

import pytest
import torch

from lab.people import body_of
from likeness.faces.keypoints import LEFT_EYE, NOSE, RIGHT_EYE
from likeness.miniature.world import sample_picture
from likeness.miniature.world.render import ground_truth


@pytest.mark.parametrize("seed", range(4))
def test_openpose_s_right_is_the_subject_s_and_so_stands_left_in_the_picture(seed):
    (truth,) = ground_truth(sample_picture(random.Random(seed), shot="full body", people=1), 128)
    body = body_of(truth)
    for right, left in ((2, 5), (8, 11), (RIGHT_EYE, LEFT_EYE)):  # shoulders, hips, eyes
        assert body[right, 0] < body[left, 0]
    torch.testing.assert_close(body[NOSE], torch.from_numpy(truth.five[2]).float())
    assert body[16:].isnan().all()
