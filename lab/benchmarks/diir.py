"""What a repaired face costs: model rows against the limit, faces in one batch and alone, inpainting, memory.

Run it as ``python run.py diir benchmark``. The limit of rows is stated by the request: the inversion's steps, both
guidance rows of the restoration, and a person's references once.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from lab.benchmarks.measure import MIB, Meter, demand, device_name, place
from lab.evaluation.magicface import WEIGHT
from lab.people import draw_person
from likeness.core.diir.fusion import mask_to_latent
from likeness.core.diir.geometry import cut
from likeness.core.diir.paste import feathered
from likeness.core.diir.request import DiirRequest
from likeness.core.magicface.cache import ReferenceCache
from likeness.faces.interface import Face
from likeness.hosts.diffusers.common import transformer_blocks
from likeness.hosts.diffusers.diir import FaceTarget, Repair, crop_of, head_in_crop, repair_faces, target_of
from likeness.hosts.diffusers.miniature import miniature
from likeness.hosts.diffusers.persona import clip_text
from likeness.hosts.diffusers.pipeline import Pipeline

FACES = 8
SAME = 1e-4  # of a pixel, between a face in a batch and the same face alone
HEAD = Face((48.0, 40.0, 70.0, 68.0), 1.0)

REQUESTS = {
    "default": DiirRequest(),
    "default, one correction": DiirRequest(corrections=1),
    "fast": DiirRequest(mode="fast"),
    "paper mode": DiirRequest(keep_style="paper"),
    "paper mode, recomputed": DiirRequest(keep_style="paper", cache="recompute"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 1 where a bound is broken."""
    parser = argparse.ArgumentParser(prog="run.py diir benchmark", description=__doc__)
    parser.add_argument("--steps", type=int, default=30, help="of the schedule (30)")
    parser.add_argument("--faces", type=int, default=FACES, help=f"in one batch ({FACES})")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.faces < 1:
        parser.error("--steps and --faces must be at least 1")
    pipeline = miniature()
    bench = Bench(pipeline, args.steps, args.faces)
    bench.warm_up()
    print(f"DIIR on {pipeline.name}, {device_name(pipeline.device)}, {args.steps} steps\n")
    rows, kept = bench.rows_and_memory()
    print(f"{rows}\n")
    batch, same = bench.batches()
    print(f"{batch}\n\n{bench.inpainting()}\n\n{demands(pipeline)}")
    return 0 if kept and same else 1


class Bench:
    """One model, one person, drawn pictures with a face each."""

    def __init__(self, pipeline: Pipeline, steps: int, faces: int) -> None:
        self.pipeline, self.steps, self.faces = pipeline, steps, faces
        person = draw_person(1, pipeline.side)
        self.target = target_of(pipeline, [person.image], person.word, [person.mask], weight=WEIGHT)
        self.pictures = [draw_person(number, 128).image for number in range(10, 10 + faces)]

    def fresh(self) -> FaceTarget:
        """The person with an empty cache of references, none of which is kept in main memory for the next run."""
        return replace(self.target, request=replace(self.target.request, cache=ReferenceCache(host_mb=0)))

    def repair(self, count: int, request: DiirRequest, first: int = 0) -> list[Tensor]:
        """Some of the faces repaired in one batch."""
        target = self.fresh()
        repairs = [Repair(i, HEAD, target) for i in range(count)]
        pictures = self.pictures[first : first + count]
        return repair_faces(self.pipeline, pictures, repairs, replace(request, steps=self.steps)).pictures

    def warm_up(self) -> None:
        """Kernels are chosen and memory is fetched at the first call."""
        repair_faces(self.pipeline, self.pictures[:1], [Repair(0, HEAD, self.target)], DiirRequest(steps=1))

    def rows_and_memory(self) -> tuple[str, bool]:
        """Rows of one face with its references, against the limit; memory beside what the kept features take."""
        lines = ["| mode | rows a face | limit | seconds | memory above the model, MiB | of which kept, MiB |",
                 "|---|---|---|---|---|---|"]
        within = True
        for name, request in REQUESTS.items():
            request = replace(request, steps=self.steps)
            references = self.steps - request.start
            again = self.steps if request.cache == "recompute" else 0
            limit = request.rows + references + again
            with counted(self.pipeline) as rows, Meter(self.pipeline.device) as meter:
                self.repair(1, request)
            within &= sum(rows) <= limit
            kept = self.latents_kept(request) + (self.features() if request.keep_style == "paper" and not again else 0)
            lines.append(f"| {name} | {sum(rows)} | {request.rows} + {references} references"
                         f"{f' + {again} again' if again else ''} | {meter.seconds:.1f} | {meter.above_mib:.0f} "
                         f"| {kept / MIB:.1f} |")
        return "\n".join(lines), within

    def latents_kept(self, request: DiirRequest) -> int:
        """Bytes of a face's trajectory: every level, and in the exact mode every input."""
        side = self.pipeline.side // 8
        levels = self.steps + 1 + (self.steps if request.mode == "exact" else 0)
        return levels * 4 * side * side * 4

    def features(self) -> int:
        """Bytes of a face's self-attention outputs over all steps."""
        seen: list[int] = []
        handles = [
            self.pipeline.unet.get_submodule(f"{path}.attn1").register_forward_hook(
                lambda module, given, out: seen.append(out[0].nbytes))
            for path, _ in transformer_blocks(self.pipeline.unet)
        ]  # fmt: skip
        try:
            side = self.pipeline.side // 8
            text = self.pipeline.conditioning([""])
            with self.pipeline.denoiser(text, None, 1.0, self.pipeline.scheduler(1)) as denoise, torch.no_grad():
                denoise(torch.zeros(1, 4, side, side, device=self.pipeline.device), torch.tensor(1))
        finally:
            for handle in handles:
                handle.remove()
        return sum(seen) * self.steps

    def batches(self) -> tuple[str, bool]:
        """How time grows with the faces of one batch; the last one against each face alone."""
        lines = ["| faces in a batch | seconds | seconds a face |", "|---|---|---|"]
        counts = sorted({1, 2, self.faces // 2 or 1, self.faces})
        for count in counts:
            seconds, together = timed(lambda n=count: self.repair(n, DiirRequest()))
            lines.append(f"| {count} | {seconds:.1f} | {seconds / count:.2f} |")
        seconds, alone = timed(lambda: [self.repair(1, DiirRequest(), i)[0] for i in range(self.faces)])
        lines.append(f"| 1, {self.faces} times | {seconds:.1f} | {seconds / self.faces:.2f} |")
        off = max(float((a - b).abs().max()) for a, b in zip(together, alone, strict=True))
        lines += ["", f"Largest difference of a pixel between both: {off:.1e} (at most {SAME:g})."]
        return "\n".join(lines), off <= SAME

    def inpainting(self) -> str:
        """Plain image-to-image inpainting of the same crops, beside the repair."""
        request = DiirRequest(mode="fast", steps=self.steps)
        lines = ["| one face | seconds | rows |", "|---|---|---|"]
        nobody = FaceTarget(self.target.prompt)
        picture, repairs = self.pictures[0], [Repair(0, HEAD, nobody)]
        runs: dict[str, Callable[[], object]] = {
            "image-to-image inpainting, strength .75, nobody": lambda: inpaint(self.pipeline, picture, request),
            "fast, nobody": lambda: repair_faces(self.pipeline, [picture], repairs, request),
            "fast, with the person": lambda: self.repair(1, request),
            "default, with the person": lambda: self.repair(1, DiirRequest()),
        }  # fmt: skip
        for name, run in runs.items():
            with counted(self.pipeline) as rows:
                seconds, _ = timed(run)
            lines.append(f"| {name} | {seconds:.1f} | {sum(rows)} |")
        return "\n".join(lines)


def demands(pipeline: Pipeline, steps: int = 4) -> str:
    """What a face asks of a GPU, a model call beside a call of vanilla sampling; the same on every machine.

    The autoencoder, which works twice, stays on the CPU and is not counted.
    """
    plain = demand(lambda device: _sampling(on_device(pipeline, device), steps))
    lines = [f"A face of {steps} steps on a virtual GPU; a call of vanilla sampling starts "
             f"{plain.launches / steps:.0f} kernels:", "",
             "| mode | model calls | launches a call, x vanilla | waits in all |", "|---|---|---|---|"]  # fmt: skip
    for name, request in REQUESTS.items():
        calls: list[int] = []

        def work(device: torch.device, request: DiirRequest = request, calls: list[int] = calls) -> Callable:
            bench = Bench(on_device(pipeline, device), steps, 1)
            bench.pipeline.unet.register_forward_pre_hook(lambda module, given: calls.append(1))
            return lambda: bench.repair(1, request)

        asked = demand(work)
        share = asked.launches / len(calls) / (plain.launches / steps)
        lines.append(f"| {name} | {len(calls)} | {share:.2f} | {asked.syncs} |")
    return "\n".join(lines)


def _sampling(pipeline: Pipeline, steps: int) -> Callable[[], object]:
    noise = pipeline.noise([0], pipeline.side, pipeline.side)
    return lambda: pipeline.sample(noise, "a picture of a person", steps=steps)


def on_device(pipeline: Pipeline, device: torch.device) -> Pipeline:
    """A copy with its networks there; pictures come from the autoencoder where it is."""
    text = clip_text(place(copy.deepcopy(pipeline.text.body), device, torch.float32))
    return replace(
        pipeline, unet=place(copy.deepcopy(pipeline.unet), device, torch.float32), text=text,
        encode_image=lambda x: pipeline.encode_image(x.cpu()).to(device),
        decode_image=lambda z: pipeline.decode_image(z.cpu()).to(device),
    )  # fmt: skip


def inpaint(pipeline: Pipeline, picture: Tensor, request: DiirRequest) -> Tensor:
    """A crop redrawn as any inpainting workflow does it: noise, DDIM, and the mask after every step."""
    scheduler = pipeline.scheduler(request.steps)
    clean = pipeline.encode(cut(picture, crop_of(HEAD, request), pipeline.side)[None])
    mask = feathered(head_in_crop(HEAD, request, pipeline.side), request.feather)
    mask = mask_to_latent(mask[None].to(clean.device), tuple(clean.shape[-2:]))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean.device)
    levels = scheduler.timesteps[request.start :]
    x = scheduler.add_noise(clean, noise, levels[:1])
    text, nothing = pipeline.conditioning([FaceTarget().prompt]), pipeline.conditioning([""])
    with pipeline.denoiser(text, nothing, request.guidance, scheduler) as denoise, torch.no_grad():
        for i, level in enumerate(levels):
            x = scheduler.step(denoise(x, level), level, x).prev_sample
            below = scheduler.add_noise(clean, noise, levels[i + 1 : i + 2]) if i + 1 < len(levels) else clean
            x = torch.lerp(below, x, mask)
    return pipeline.decode(x)


@contextmanager
def counted(pipeline: Pipeline) -> Iterator[list[int]]:
    """Rows of every call of the UNet inside the block."""
    rows: list[int] = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        handle.remove()


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds of a piece of work whose result lies on the CPU, and the result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    raise SystemExit(main())
