"""Pictures to look at while MagicID is trained: held-out people, drawn by the weights as they stand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from likeness.core.magicid.encoder import FaceFeatures
from likeness.core.magicid.run import PlacedIdentity
from likeness.drawing.sheets import TILE, Tile, sheet, to_image
from likeness.formats.magicid import MagicIdWeights
from likeness.hosts.diffusers.magicid import MagicIdRequest, generate, load_control
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.hosts.diffusers.sampling import Conditioning
from likeness.training.magicid.request import CONTROL, Phase
from likeness.training.magicid.samples import Sample

SHOWN, STEPS, SEED = 4, 15, 1


@torch.no_grad()
def validation_sheet(
    pipeline: Pipeline, weights: MagicIdWeights, samples: Sequence[Sample], empty: Tensor, phase: Phase, title: str
) -> Image.Image:
    """The first samples' pictures, and under each what is drawn of its caption, people, places and pose.

    The same seed at every call, so that sheets of one training are compared picture by picture. No global random
    number is drawn: the training's curve stays what it would be.

    Args:
        samples: of held-out people. empty: ``T C``, the text encoder's states of an empty text.
        phase: whose places act; its first mode is the pose.
    """
    with torch.random.fork_rng(devices=()):  # a network is drawn before its weights are loaded
        control = load_control(pipeline.unet, weights) if CONTROL in phase.places else None
    nobody = Conditioning(empty[None].float().to(pipeline.device))
    shown = samples[:SHOWN]
    rows = [[pipeline.decode(sample.latent[None].float().to(pipeline.device))[0] for sample in shown], []]
    for sample in shown:
        pose = None if control is None else sample.poses[phase.modes[0]].float() / 255
        request = MagicIdRequest(people_of(sample, weights), phase.places, pose=pose)
        text = Conditioning(sample.text[None].float().to(pipeline.device))
        drawn = generate(pipeline, weights, text, [SEED], request, control, STEPS, negative=nobody)
        rows[1].append(drawn[0])
    captions = ("held-out pictures", "drawn of their captions and people" + (", posed" if control else ""))
    return sheet(title, [(c, [Tile(to_image(p, TILE)) for p in row]) for c, row in zip(captions, rows, strict=True)])


def people_of(sample: Sample, weights: MagicIdWeights) -> list[PlacedIdentity]:
    """A sample's people, each by their first reference; somebody alone acts everywhere."""
    encoder = weights.encoder.float()
    tokens, nobody = encoder(FaceFeatures(vector=sample.vectors[:, 0].float())), encoder.unconditional()[0]
    regions = [None] if len(tokens) == 1 else sample.regions.float()
    return [PlacedIdentity(one, nobody, region) for one, region in zip(tokens, regions, strict=True)]
