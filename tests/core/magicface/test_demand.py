"""What MagicFace's core alone asks of a GPU on the layouts of SD1.5 and SDXL."""

from __future__ import annotations

import pytest
import torch

from lab.virtual_gpu import DEVICE, Log, virtual_gpu
from likeness.core.blocks import UNetLayout
from likeness.core.magicface import concepts
from likeness.core.magicface.cache import ReferenceCache
from likeness.core.magicface.injection import BlockKeys, ReferenceKeys, rba, rsa
from likeness.core.magicface.record import Recorder
from likeness.core.magicface.references import Capture, ReferenceBatch
from likeness.core.magicface.regions import group_tokens
from likeness.core.magicface.request import MagicFaceRequest, Reference
from likeness.core.magicface.run import MagicFaceRun

LAYOUTS = {
    "sd15": UNetLayout.from_counts([[1, 1], [1, 1], [1, 1], []], [1], [[], [1, 1, 1], [1, 1, 1], [1, 1, 1]]),
    "sdxl": UNetLayout.from_counts([[], [2, 2], [10, 10]], [10], [[10, 10, 10], [2, 2, 2], []]),
}
SIDE, WIDTH, HEADS = 16, 32, 2
SIGMAS = [14.0, 7.0, 3.0, 1.0, 0.0]


def tokens(layout: UNetLayout, block) -> int:
    return (SIDE // layout.factor(block)) ** 2


def on_device(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator).to(DEVICE, torch.float16)


def half(index: int) -> torch.Tensor:
    plane = torch.zeros(SIDE, SIDE)
    plane[:, index * SIDE // 2 : (index + 1) * SIDE // 2] = 1
    return plane


def make_request(placed: bool, **options) -> MagicFaceRequest:
    """Two references with half masks."""
    halves = [half(index) for index in range(2)]
    references = tuple(
        Reference(f"c{i}", torch.randn(1, 4, SIDE, SIDE), None, i, (2 + i,), mask, region=mask if placed else None)
        for i, mask in enumerate(halves)
    )
    return MagicFaceRequest(references, cache=ReferenceCache(), **options)


def drive(log: Log, layout: UNetLayout, request: MagicFaceRequest, pictures: int = 1) -> list[tuple[int, int]]:
    """One run of guided calls; launches and waits of each."""
    generator, found = torch.Generator().manual_seed(0), []

    def references(batch: ReferenceBatch, capture: Capture) -> None:
        for block in capture.blocks:
            shape = len(batch.references), tokens(layout, block), WIDTH
            capture.store(block, on_device(generator, *shape), on_device(generator, *shape))

    run = MagicFaceRun(request, layout, SIGMAS, "model", references, device=DEVICE)
    for sigma in SIGMAS[:-1]:
        log.clear()
        with run.begin_call(sigma, [False] * pictures + [True] * pictures, (SIDE, SIDE)) as call:
            for block in layout.blocks:
                with log.paused():
                    q, k, v = (on_device(generator, 2 * pictures, tokens(layout, block), WIDTH) for _ in range(3))
                    text = on_device(generator, 2 * pictures, 77, WIDTH)
                if block in call.self_blocks:
                    call.self_attention(block, q, k, v, HEADS)
                if block in call.cross_blocks:
                    call.cross_attention(block, q, text, HEADS)
        if request.scfg:
            cond, uncond = (torch.zeros(pictures, 4, SIDE, SIDE, device=DEVICE) for _ in range(2))
            run.guide(cond, uncond, 7.5)
        found.append((log.launches, log.syncs))
    run.close()
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 1.0},
        {"alpha": 0.0},
        {"alpha": 0.0, "scfg": True},
        {"alpha": 0.5, "recorder": Recorder(moments=())},
        {"alpha": 0.0, "placed": True},
        {"alpha": 0.0, "weighting": "multiplicative"},
    ],
    ids=lambda options: ", ".join(options),
)
def test_a_step_waits_once_at_most(layout: str, options: dict) -> None:
    """A new map's regions are measured once a step; the host's reading of the noise level is the second wait."""
    with virtual_gpu() as log, torch.no_grad():
        request = make_request(**{"placed": False, **options})
        drive(log, LAYOUTS[layout], request)
        steps = drive(log, LAYOUTS[layout], request)
    assert max(waits for _, waits in steps) <= 1
    if options["alpha"] == 1.0 or options.get("placed"):
        assert all(waits == 0 for _, waits in steps[1:]), "nothing is to be measured anew"


def test_more_pictures_cost_no_more_launches() -> None:
    with virtual_gpu() as log, torch.no_grad():
        one, four = (drive(log, LAYOUTS["sd15"], make_request(False, alpha=0.0), pictures) for pictures in (1, 4))
    assert four[-1][0] <= 1.15 * one[-1][0] and four[-1][1] == one[-1][1]


def test_heads_keep_their_width() -> None:
    """SDXL's heads of 64 stay in the kernels' class of 64: nothing is added to them, and no mask is needed."""
    q, k, v = (torch.randn(2, 64, 128, dtype=torch.float16) for _ in range(3))
    theirs = ReferenceKeys(k[0], v[0], 3.0), ReferenceKeys(k[1], v[1], 1.5)
    with virtual_gpu() as log, torch.no_grad():
        q, k, v = (x.to(DEVICE) for x in (q, k, v))
        keys = BlockKeys(tuple((ReferenceKeys(p.k.to(DEVICE), p.v.to(DEVICE), p.bias),) for p in theirs))
        rsa(q, k, v, 2, keys)
        log.clear()
        rsa(q, k, v, 2, keys)
        rba(q, k, v, 2, keys, group_tokens((torch.arange(128) % 3).view(2, 64).to(DEVICE), 2))
    assert len(log.attention) == 6
    assert {call.q[-1] for call in log.attention} == {64} and not any(call.masked for call in log.attention)


def test_regions_are_pooled_once_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled: list[tuple[int, int]] = []
    pool = concepts.mask_to_grid
    monkeypatch.setattr(concepts, "mask_to_grid", lambda mask, grid: pooled.append(grid) or pool(mask, grid))
    with virtual_gpu() as log, torch.no_grad():
        drive(log, LAYOUTS["sd15"], make_request(True, alpha=0.0))
    assert sorted(pooled) == [(8, 8), (8, 8), (16, 16), (16, 16)], "two regions on two grids"
