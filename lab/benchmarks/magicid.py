"""What identities cost while sampling: one batched attention for all of them (MGMICA), against a loop over them.

Run it as ``python run.py magicid benchmark``. A guided step (two rows) with N identities, each in a region of its own,
beside a vanilla step; time on this machine, and launches, waits and FLOPs as a GPU would see them. ``--training`` adds
a training step of the ControlNet beside its limit: the frozen UNet's forward, the ControlNet's forward and backward,
and the backward through the UNet's decoder for activations, without which nothing reaches the ControlNet. Random
weights: cost does not depend on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor

from lab.benchmarks.magicface import SHAPES
from lab.benchmarks.measure import Demand, demand, device_name, place
from lab.benchmarks.persona import Timing, alternate
from lab.magicid import fresh_model
from lab.magicid_people import LANDMARKS
from likeness.core.attention import merge_heads, split_heads
from likeness.core.blocks import BlockId
from likeness.core.magicid.projections import IdentityAttention
from likeness.core.magicid.run import LayerKeys, MagicIdCall, MagicIdRun, PlacedIdentity, project
from likeness.core.masks import FULL_FRAME, token_grid
from likeness.core.schedule import stable_diffusion_alphas
from likeness.hosts.diffusers.common import transformer_blocks, unet_layout
from likeness.hosts.diffusers.magicid import FOLD, identities, new_control, training_host
from likeness.training.magicid.request import CONTROL, MagicIdTraining, Phase
from likeness.training.magicid.samples import Sample
from likeness.training.magicid.trainer import MagicIdTrainer

LIMIT, TOKENS, SIGMAS = 1.05, 4, (10.0, 5.0, 0.0)
VANILLA, OURS, LOOP, ALONE = "vanilla", "MGMICA", "loop", " alone"
LIMITED = 4  # identities for which the limit is meant
VECTOR = 512


@dataclass(frozen=True, eq=False)
class Loop:
    """What MGMICA is measured against: one attention kernel for each identity, weighed by its mask and added."""

    run: MagicIdRun
    latent: tuple[int, int]

    def add(self, block: BlockId, q: Tensor, attended: Tensor, heads: int) -> Tensor:
        """See :meth:`likeness.core.magicid.run.MagicIdCall.add`."""
        layer: LayerKeys = self.run.keys(block, q)
        grid = token_grid(self.latent, self.run.layout.factor(block), q.shape[1])
        weights, present = self.run.weights(grid, (FULL_FRAME,), tuple(range(len(self.run.people))), q)
        for n in range(len(present)):
            k, v = (split_heads(x[:, n], heads) for x in (layer.k, layer.v))
            own = merge_heads(F.scaled_dot_product_attention(split_heads(q, heads), k, v))
            attended = attended + own * weights[:, n, :, None]
        return attended


def random_unet(shape: str, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """A UNet of a known shape."""
    torch.manual_seed(0)
    return place(UNet2DConditionModel(**SHAPES[shape]).eval(), device, dtype)


def cross_widths(unet: UNet2DConditionModel) -> dict[BlockId, int]:
    """Width of every cross-attention."""
    return {block: unet.get_submodule(f"{path}.attn2").to_k.out_features for path, block in transformer_blocks(unet)}


def people(count: int, width: int) -> list[PlacedIdentity]:
    """Identities side by side, each in its own part of the picture."""
    planes = torch.eye(count).repeat_interleave(16, dim=1)[:, None].expand(-1, 16, -1)  # N 16 (16 N)
    return [PlacedIdentity(torch.randn(TOKENS, width), torch.randn(TOKENS, width), plane) for plane in planes]


def step(unet: UNet2DConditionModel, side: int, count: int = 0, way: str = VANILLA) -> Callable[[], object]:
    """A guided step with identities, as the work of a benchmark."""
    width, device, dtype = unet.config.cross_attention_dim, unet.device, unet.dtype
    x, text = (torch.randn(shape).to(device, dtype) for shape in ((2, 4, side, side), (2, 77, width)))
    more = {}
    if unet.config.addition_embed_type == "text_time":
        more = {"added_cond_kwargs": {
            "text_embeds": torch.randn(2, 1280).to(device, dtype), "time_ids": torch.zeros(2, 6).to(device, dtype)
        }}  # fmt: skip
    forward = partial(unet, x, torch.tensor(500).to(device), encoder_hidden_states=text, **more)
    if way == VANILLA:
        return forward
    attention, run = placed(unet, count)

    def work() -> None:
        with identities(unet, attention.blocks) as slot:
            slot.call = call(run, side, way)
            forward()

    work()  # as in a run, whose first step moves keys and masks to the device
    return work


def placed(unet: UNet2DConditionModel, count: int) -> tuple[IdentityAttention, MagicIdRun]:
    """A run with identities, by untrained attention."""
    width = unet.config.cross_attention_dim
    attention, some = IdentityAttention(cross_widths(unet), width), people(count, width)
    return attention, MagicIdRun(project(attention, some), some, unet_layout(unet), SIGMAS)


def call(run: MagicIdRun, side: int, way: str) -> MagicIdCall | Loop:
    """A guided call of the run."""
    return run.begin(SIGMAS[0], (False, True), (side, side)) if way == OURS else Loop(run, (side, side))


def added(unet: UNet2DConditionModel, side: int, count: int, way: str) -> Callable[[], object]:
    """What identities add to a step, by itself: their attention in every layer, on random queries.

    It is a hundredth of a step, which the difference of two steps' times does not show on a machine that is disturbed.
    """
    run, layers = placed(unet, count)[1], []
    for path, block in transformer_blocks(unet):
        attention, edge = unet.get_submodule(f"{path}.attn2"), -(-side // run.layout.factor(block))
        queries = torch.randn(2, edge**2, attention.to_k.out_features).to(unet.device, unet.dtype)
        layers.append((block, queries, attention.heads))

    def work() -> None:
        now = call(run, side, way)
        for block, queries, heads in layers:
            now.add(block, queries, queries, heads)

    return work


def demands(shape: str, side: int, dtype: torch.dtype, counts: Sequence[int]) -> dict[tuple[str, int], Demand]:
    """What each variant asks of a GPU; the same on every machine."""
    variants = [(VANILLA, 0), *((way, n) for n in counts for way in (OURS, LOOP))]
    return {
        (way, n): demand(lambda device, way=way, n=n: step(random_unet(shape, device, dtype), side, n, way))
        for way, n in variants
    }


def timings(shape: str, side: int, device: torch.device, dtype: torch.dtype, counts: Sequence[int], rounds: int,
            busy: bool) -> dict[tuple[str, int], Timing]:  # fmt: skip
    """Median times of the variants, taken in turn on one UNet; under ``("MGMICA alone", n)`` what they add."""
    unet = random_unet(shape, device, dtype)
    works = {(VANILLA, 0): step(unet, side)}
    ways = [(way, n) for n in counts for way in (OURS, LOOP)]
    works |= {(way, n): step(unet, side, n, way) for way, n in ways}
    works |= {(way + ALONE, n): added(unet, side, n, way) for way, n in ways}
    with torch.no_grad():
        return alternate(works, rounds, device, busy)


# --- training ---------------------------------------------------------------------------------------------------------


@contextmanager
def training_works(unet: UNet2DConditionModel, side: int, batch: int) -> Iterator[dict[str, Callable[[], object]]]:
    """A training step of the ControlNet with its identities, and the least that it must compute."""
    device, width, control = unet.device, unet.config.cross_attention_dim, new_control(unet).to(unet.device)
    config = MagicIdTraining(phases=(Phase("ControlNet", 1000, (CONTROL,), (LANDMARKS,)),), batch=batch)
    with training_host(unet, stable_diffusion_alphas().float(), control) as host:
        model = fresh_model(unet, host, (CONTROL,), control, VECTOR)
        trainer = MagicIdTrainer(config, model, [random_sample(side, width)], torch.zeros(77, width))
        rows = trainer.sampler.batch(0, trainer.phase).to(device)

        def limit() -> None:
            predicted = host.predict(rows.latents, rows.timesteps, rows.text, {}, control, rows.pose)
            predicted.square().mean().backward()
            control.zero_grad(set_to_none=True)

        yield {"limit": limit, "step": trainer.advance}


def random_sample(side: int, width: int) -> Sample:
    """A picture of one person, for a model whose text is ``width`` wide."""
    pose = torch.zeros(3, FOLD * side, FOLD * side, dtype=torch.uint8)
    return Sample(
        latent=torch.randn(4, side, side), text=torch.randn(77, width), vectors=torch.randn(1, 1, VECTOR),
        regions=torch.ones(1, side, side), boxes=torch.tensor([[0.2, 0.2, 0.8, 0.8]]), poses={LANDMARKS: pose},
    )  # fmt: skip


def training_table(found: dict[str, Timing], batch: int) -> str:
    """Markdown."""
    limit, full = found["limit"], found["step"]
    return "\n".join([
        "| | seconds | x limit | peak MiB above the model |", "|---|---|---|---|",
        f"| limit: UNet forward, ControlNet forward and backward, decoder backward for activations, batch {batch} "
        f"| {limit.seconds:.3f} | 1 | {limit.peak_mib:.0f} |",
        f"| training step, batch {batch} | {full.seconds:.3f} | {full.seconds / limit.seconds:.3f} "
        f"| {full.peak_mib:.0f} |",
    ])  # fmt: skip


# --- tables -----------------------------------------------------------------------------------------------------------


def table(asked: dict[tuple[str, int], Demand], timed: dict[tuple[str, int], Timing]) -> str:
    """Markdown; without timings their columns stay empty."""
    heads = f"| | N | seconds | x vanilla | limit | added alone, x vanilla | {Demand.HEADS} |"
    lines = [heads, "|---|---|---|---|---|---|---|---|---|"]
    plain = (VANILLA, 0)
    for variant, counted in asked.items():
        way, n = variant
        taken = timed[variant].seconds if timed else 0.0
        seconds = f"{taken:.3f} | {taken / timed[plain].seconds:.3f}" if timed else "|"
        limit = LIMIT if way == OURS and n <= LIMITED else ""
        alone = timed.get((way + ALONE, n))
        share = f"{alone.seconds / timed[plain].seconds:.3f}" if alone else ""
        lines.append(f"| {way} | {n or ''} | {seconds} | {limit} | {share} | {counted.columns(asked[plain])} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 1 where MGMICA of up to four identities makes a GPU wait or costs more FLOPs than the bar."""
    parser = argparse.ArgumentParser(prog="run.py magicid benchmark", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="sd15")
    parser.add_argument("--size", type=int, default=512, help="picture side in pixels (512)")
    parser.add_argument("--identities", type=int, nargs="+", default=[1, 2, 4], metavar="N")
    parser.add_argument("--rounds", type=int, default=5, help="after the warm-up (5); 0: no timing")
    parser.add_argument("--busy", action="store_true", help="count CPU time, for a machine that others use too")
    parser.add_argument("--training", type=int, default=0, metavar="BATCH", help="a training step beside its limit")
    args = parser.parse_args(argv)
    if args.training and (args.shape == "sdxl" or not args.rounds):
        parser.error("--training: SDXL is not trained, and a step is timed in at least one round")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    side = args.size // 8
    asked = demands(args.shape, side, torch.float32, args.identities)
    timed = timings(args.shape, side, device, dtype, args.identities, args.rounds, args.busy) if args.rounds else {}
    print(f"{args.shape}, {args.size} px, {dtype}, {device_name(device)}; limit for N <= {LIMITED}, no wait\n")
    print(table(asked, timed))
    if args.training:
        with training_works(random_unet(args.shape, device, torch.float32), side, args.training) as works:
            print("\n" + training_table(alternate(works, args.rounds, device, args.busy), args.training))
    return 0 if kept(asked) else 1


def kept(asked: dict[tuple[str, int], Demand]) -> bool:
    """Whether MGMICA keeps what can be told on every machine: its FLOPs below the bar, and no wait."""
    plain = asked[VANILLA, 0]
    ours = [one for (way, n), one in asked.items() if way == OURS and n <= LIMITED]
    return all(one.syncs <= plain.syncs and one.flops <= LIMIT * plain.flops for one in ours)
