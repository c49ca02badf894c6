"""A tiny MMF training: a model of one weight a level, samples from seeds."""

from __future__ import annotations

import torch
from torch import nn

from likeness.core.blocks import BlockId, UNetLayout
from likeness.core.magicid.encoder import EncoderShape, build_encoder
from likeness.core.magicid.projections import IdentityAttention
from likeness.core.schedule import stable_diffusion_alphas
from likeness.training.magicid.model import MagicIdModel
from likeness.training.magicid.request import CONTROL, UNET, MagicIdTraining, Phase, StepReport
from likeness.training.magicid.samples import Sample
from likeness.training.magicid.trainer import MagicIdTrainer

WIDTH, CONTEXT, VECTOR, SIDE = 8, 8, 6, 4
BLOCK = BlockId("down", 0)
LAYOUT = UNetLayout((BLOCK,), 1)
PHASES = (
    Phase("identity", 4, (UNET,)),
    Phase("pose", 4, (CONTROL,), ("landmarks",), clone_every=2, encoder=False),
)
TINY = MagicIdTraining(phases=PHASES, batch=4, learning_rate=1e-2, ema=0.9, alike=0.5, balanced=True)


class Told(MagicIdTrainer):
    """A trainer that keeps its reports in ``history``."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.history: list[StepReport] = []

    def advance(self) -> StepReport:
        self.history.append(super().advance())
        return self.history[-1]


class TinyHost:
    """A base of one cross-attention without text; the ControlNet adds what it makes of the pose."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.alphas_cumprod = stable_diffusion_alphas().float()
        self.into, self.out = (torch.randn(shape, generator=generator) * 0.3 for shape in ((4, WIDTH), (WIDTH, 4)))

    def predict(self, noisy, timesteps, text, calls, control=None, pose=None):
        """See TrainingHost."""
        rows, (height, width) = len(noisy), noisy.shape[-2:]
        q = noisy.flatten(2).transpose(1, 2) @ self.into
        attended = text.mean(dim=1, keepdim=True).expand(-1, q.shape[1], -1)
        for call in calls.values():
            attended = call.add(BLOCK, q, attended, 2)
        out = (attended @ self.out).transpose(1, 2).unflatten(2, (height, width))
        if control is not None:
            out = out + control(nn.functional.avg_pool2d(pose, 8))
        return out.reshape(rows, 4, height, width)


def tiny_model(config: MagicIdTraining = TINY, seed: int = 0) -> MagicIdModel:
    """Fresh weights."""
    torch.manual_seed(seed)
    encoder = build_encoder(EncoderShape("vector", CONTEXT, 2, VECTOR))
    attention = {place: IdentityAttention({BLOCK: WIDTH}, CONTEXT) for place in config.places}
    control = nn.Conv2d(3, 4, 1) if CONTROL in config.places else None
    layouts = dict.fromkeys(config.places, LAYOUT)
    return MagicIdModel(TinyHost(), encoder, attention, layouts, control)


def tiny_samples(count: int = 12, seed: int = 3) -> list[Sample]:
    """One or two people each; the first eight are two scenes of four."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for i in range(count):
        people = 1 if i % 3 else 2
        boxes = torch.tensor([[0.1, 0.1, 0.6, 0.7]]).repeat(people, 1)
        out.append(Sample(
            latent=torch.randn(4, SIDE, SIDE, generator=generator), text=torch.randn(3, CONTEXT, generator=generator),
            vectors=torch.randn(people, 2, VECTOR, generator=generator),
            regions=torch.rand(people, SIDE, SIDE, generator=generator), boxes=boxes,
            poses={"landmarks": torch.randint(256, (3, 8 * SIDE, 8 * SIDE), generator=generator).byte()},
            scene=i // 4 if i < 8 else -1,
        ))  # fmt: skip
    return out


EMPTY = torch.zeros(3, CONTEXT)
