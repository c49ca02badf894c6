"""``python run.py magicface benchmark``: what MagicFace costs a step, beside vanilla, the limit, and a naive way.

A UNet of SD1.5's (or SDXL's) shape with random weights; every variant is timed once a round, in a new order each
round, in one process, so that ratios hold when the machine's speed drifts. A run is two steps: one of RSA, one of RBA
with the semantic map. Masks cover half of each reference.

What a run asks of a GPU (kernel launches, times the CPU waits for it, floating-point operations) is counted on a
virtual one, so that it is the same on every machine.

The limit of time is (2 + N) / 2 of vanilla without the cache (N reference rows beside the two of classifier-free
guidance) and 1 with it. What the semantic map costs is timed inside a run: it is less than two runs differ by chance.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from unittest.mock import patch

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from lab.benchmarks.measure import Demand, Meter, demand, device_name, measure, now, place
from lab.benchmarks.naive import NaiveMagicFace
from likeness.core.magicface.cache import ReferenceCache
from likeness.core.magicface.call import MagicFaceCall
from likeness.core.magicface.request import MagicFaceRequest, Reference
from likeness.core.magicface.run_maps import RunMaps
from likeness.hosts.diffusers.magicface import magicface
from likeness.hosts.diffusers.pipeline import SCHEDULE
from likeness.hosts.diffusers.sampling import Conditioning, guided_denoiser, sample

log = logging.getLogger("likeness")
STEPS = 2

SHAPES = {
    "sd15": {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "tiny": {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 64, "attention_head_dim": 4},
}


@dataclass
class Bench:
    """A random UNet at one picture size and everything a run needs."""

    unet: UNet2DConditionModel
    side: int
    cond: Conditioning
    uncond: Conditioning
    device: torch.device

    @classmethod
    def make(cls, shape: str, size: int, device: torch.device, dtype: torch.dtype) -> Bench:
        """Random weights from a fixed seed."""
        torch.manual_seed(0)
        unet = place(UNet2DConditionModel(sample_size=size // 8, **SHAPES[shape]), device, dtype)
        unet.eval().requires_grad_(False)
        added = {}
        if shape == "sdxl":
            added = {"text_embeds": torch.randn(1, 1280), "time_ids": torch.full((1, 6), float(size))}
        width = SHAPES[shape]["cross_attention_dim"]
        added = {k: v.to(device, dtype) for k, v in added.items()}
        contexts = [torch.randn(1, 77, width).to(device, dtype) for _ in range(2)]
        return cls(unet, size // 8, *(Conditioning(c, added) for c in contexts), device)

    def scheduler(self) -> DDIMScheduler:
        """SD1.5's schedule at :data:`STEPS` steps."""
        scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False)
        scheduler.set_timesteps(STEPS)
        return scheduler

    def noise(self) -> Tensor:
        """Starting latents."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(1, 4, self.side, self.side, generator=generator).to(self.device, self.unet.dtype)

    def mask(self, index: int) -> Tensor:
        """Half of a reference: left, right, top, ..."""
        mask = torch.zeros(self.side, self.side)
        half = self.side // 2
        (mask if index % 2 == 0 else mask.T)[:, :half] = 1
        return mask

    def request(self, count: int, cache: ReferenceCache, alpha: float = 0.5, maps: bool = False) -> MagicFaceRequest:
        """``count`` references with half masks, one token each."""
        references = tuple(
            Reference(
                name=f"concept {i}",
                latent=torch.randn(1, 4, self.side, self.side, generator=torch.Generator().manual_seed(10 + i)),
                context=self.cond,
                context_key=f"c{i}",
                positions=(2 + i,),
                mask=self.mask(i),
            )
            for i in range(count)
        )
        return MagicFaceRequest(references, alpha=alpha, cache=cache, scfg=maps)

    def run(self, request: MagicFaceRequest) -> None:
        """A MagicFace run."""
        scheduler = self.scheduler()
        with magicface(self.unet, request, scheduler, model_key="benchmark") as session:
            sample(guided_denoiser(self.unet, self.cond, self.uncond, 7.5, session), self.noise(), scheduler)

    def naive(self, count: int) -> None:
        """A run of the published way."""
        masks = [self.mask(i).to(self.device) for i in range(count)]
        scheduler = self.scheduler()
        context = torch.cat([self.uncond.context] * (count + 1) + [self.cond.context] * (count + 1))
        added = {k: torch.cat([v] * (2 * count + 2)) for k, v in self.cond.added.items()} or None
        with NaiveMagicFace(self.unet, masks) as run, torch.no_grad():
            x = self.noise()
            for t in scheduler.timesteps:
                rows = x.expand(2 * count + 2, -1, -1, -1)
                out = self.unet(rows, t, context, added_cond_kwargs=added).sample
                run.end_step((self.side, self.side))
                x = scheduler.step(out[count : count + 1] + 7.5 * (out[-1:] - out[count : count + 1]), t, x).prev_sample

    def vanilla(self) -> None:
        """A run without MagicFace."""
        scheduler = self.scheduler()
        sample(guided_denoiser(self.unet, self.cond, self.uncond, 7.5), self.noise(), scheduler)


def variants(
    bench: Bench, counts: Sequence[int], naive: Sequence[int], only: str | None = None
) -> dict[str, Callable[[], None]]:
    """Name to work; ``vanilla`` first. ``only``: of which caches are filled; None is all."""
    off = lambda: ReferenceCache(0, 0)  # noqa: E731
    work: dict[str, Callable[[], None]] = {"vanilla": bench.vanilla}
    for n in counts:
        warm = bench.request(n, ReferenceCache(2**20, 2**20))
        if only in (None, f"ours cached, N = {n}"):
            bench.run(warm)
        work[f"ours, N = {n}"] = lambda n=n: bench.run(bench.request(n, off()))
        work[f"ours cached, N = {n}"] = lambda warm=warm: bench.run(warm)
        if n in naive:
            work[f"naive, N = {n}"] = lambda n=n: bench.naive(n)
    return work


def map_shares(bench: Bench) -> tuple[float, float]:
    """Share of a step of cached RBA that goes into the semantic map: the map alone, and with S-CFG's foreground."""
    cache, spent = ReferenceCache(2**20, 2**20), 0.0

    def timed(work: Callable) -> Callable:
        def run(*args):
            nonlocal spent
            started = now(bench.device)
            result = work(*args)
            spent += now(bench.device) - started
            return result

        return run

    look, finish = timed(MagicFaceCall.cross_attention), timed(RunMaps.collect)
    bench.run(bench.request(1, cache, alpha=0.0))
    shares = []
    for maps in (False, True):
        request, spent = bench.request(1, cache, alpha=0.0, maps=maps), 0.0
        with patch.object(MagicFaceCall, "cross_attention", look), patch.object(RunMaps, "collect", finish):
            whole = measure(lambda request=request: bench.run(request), bench.device).seconds
        shares.append(spent / whole)
    return shares[0], shares[1]


def limit(name: str) -> float | None:
    """The theoretical least time over vanilla's."""
    if name.startswith("ours cached"):
        return 1.0
    return (2 + int(name.rsplit(" ", 1)[1])) / 2 if name.startswith("ours,") else None


def demands(shape: str, size: int, dtype: torch.dtype, counts: Sequence[int]) -> dict[str, Demand]:
    """What each variant asks of a GPU, by name, ``vanilla`` first; the same on every machine.

    The naive variant is left out: it forms every map, also on a machine that only counts.
    """
    names = ["vanilla", *(name for n in counts for name in (f"ours, N = {n}", f"ours cached, N = {n}"))]

    def of(name: str) -> Demand:
        return demand(lambda device: variants(Bench.make(shape, size, device, dtype), counts, (), name)[name])

    return {name: of(name) for name in names}


def table(results: dict[str, list[Meter]], asked: dict[str, Demand]) -> str:
    """Markdown: medians, the ratio of the medians, the ratio of the fastest runs, and the limit.

    Args:
        results: of the variants that were timed. asked: of those that were counted, see :func:`demands`.
    """
    rows = [
        "| variant | s / step | x vanilla | fastest, x vanilla | limit | peak MiB | above vanilla MiB "
        f"| {Demand.HEADS} |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    base = results["vanilla"]
    for name, measures in results.items():
        ratio, fastest = (of(m.seconds for m in measures) / of(b.seconds for b in base) for of in (median, min))
        peak = median(m.above_mib for m in measures)
        bound = f"{limit(name):.2f}" if limit(name) else ""
        above = peak - median(b.above_mib for b in base)
        seconds = median(m.seconds for m in measures) / STEPS
        ratios = f"{ratio:.2f} | {fastest:.2f} | {bound}"
        counted = asked[name].columns(asked["vanilla"]) if name in asked else " | | "
        rows.append(f"| {name} | {seconds:.3f} | {ratios} | {peak:.0f} | {above:.0f} | {counted} |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="run.py magicface benchmark", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="sd15")
    parser.add_argument("--size", type=int, default=512, help="picture side in pixels")
    parser.add_argument("--references", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--naive", type=int, nargs="*", default=[2], metavar="N", help="N to run naively too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=None)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype or ("float16" if device.type == "cuda" else "float32"))
    bench = Bench.make(args.shape, args.size, device, dtype)
    log.info("warming up the caches, two steps for each number of references")
    work = variants(bench, args.references, args.naive)
    results: dict[str, list[Meter]] = {name: [] for name in work}
    for index in range(args.rounds):
        for name in random.Random(index).sample(list(work), len(work)):  # what runs after what must not matter
            results[name].append(measure(work[name], device))
            log.info("round %d, %s: %.2f s", index + 1, name, results[name][-1].seconds)
    print(
        f"{args.shape}, {args.size} px, {dtype}, {device_name(device)}, torch {torch.__version__}, "
        f"medians of {args.rounds} interleaved rounds of {STEPS} steps\n"
    )
    print(table(results, demands(args.shape, args.size, dtype, args.references)))
    plain, both = map_shares(bench)
    print(f"\nOf a step of cached RBA, N = 1, the semantic map takes {plain:.1%}, with S-CFG's foreground {both:.1%}.")
    return 0
