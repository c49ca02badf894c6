"""What a sampling step asks of a GPU: launches beside vanilla, and waits, on a UNet of SD1.5's topology in fp16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.comfy import persona, tiny
from support.comfy.magicface import Parts, apply, box, chain
from support.comfy.virtual import Steps, counted, host_on_virtual_gpu, on_virtual_gpu

from likeness.hosts.comfy.persona import apply as comfy_persona

STEPS = 2
SETTLED = 1  # the step that is looked at: the first one brings constants to the device
WAITS = 2  # the noise level, and how large the regions of a new map are


@pytest.fixture(scope="module")
def gpu(parts: Parts) -> Iterator[tuple[Any, Any, Steps]]:
    """The virtual GPU's log, a model there, and what a step asks of it without us."""
    with host_on_virtual_gpu() as log:
        model = on_virtual_gpu(tiny.model())
        yield log, model, counted(log, model, parts.negative, parts.negative, steps=STEPS)


def ratio(gpu: tuple[Any, Any, Steps], parts: Parts, references: int, **options: Any) -> tuple[float, int]:
    """Launches beside vanilla, and waits, of a step whose references are in the cache."""
    log, model, vanilla = gpu
    with log.paused():
        made = apply(parts, chain(*("man", "tie")[:references], mask=box()), model=model, **options)
    counted(log, made.model, made.positive, parts.negative, steps=STEPS)
    found = counted(log, made.model, made.positive, parts.negative, steps=STEPS)
    return found.launches[SETTLED] / vanilla.launches[SETTLED], found.syncs[SETTLED]


@pytest.mark.parametrize(
    "references, options, launches",
    [
        (1, {"alpha": 1.0, "record": False}, 1.15),
        (1, {"alpha": 0.0, "record": False}, 1.25),
        (2, {"alpha": 1.0, "record": False}, 1.15),
        (2, {"alpha": 0.0, "record": False}, 1.35),
        (2, {"alpha": 1.0}, 1.35),  # a step whose map is recorded
        (2, {"alpha": 0.0, "record": False, "s_cfg": True, "weighting": "multiplicative"}, 1.4),  # the dearest options
    ],
)
def test_a_step_with_references_waits_twice_and_launches_little(
    parts: Parts, gpu: tuple[Any, Any, Steps], references: int, options: dict[str, Any], launches: float
) -> None:
    beside, waits = ratio(gpu, parts, references, **options)
    assert beside <= launches
    assert waits <= WAITS


def test_vanilla_waits_for_nothing(gpu: tuple[Any, Any, Steps]) -> None:
    assert gpu[2].syncs[SETTLED] == 0


@pytest.mark.parametrize("free_mib", [900, 10**6])
def test_the_caches_place_is_what_the_forward_leaves(
    parts: Parts, gpu: tuple[Any, Any, Steps], free_mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """900 MiB are less than the host keeps for a forward: none of it goes to the references' keys and values."""
    log, model, _ = gpu
    references = chain("man", mask=box())
    with log.paused():
        made = apply(parts, references, model=model, alpha=0.0, record=False)
    (cache,) = references._caches.values()
    monkeypatch.setattr(cache, "free_bytes", lambda _: free_mib * 2**20 - cache.used[True])
    on_device: list[int] = []
    keep = cache.put
    monkeypatch.setattr(cache, "put", lambda *given: (keep(*given), on_device.append(cache.used[True])))
    counted(log, made.model, made.positive, parts.negative, steps=STEPS)
    assert len(on_device) == len(cache) > 0
    assert (max(on_device) > 0) == (free_mib > 900)
    assert cache.used[True] == 0, "after the run the device is for others"
    monkeypatch.setattr(cache, "put", keep)
    hits = cache.hits
    counted(log, made.model, made.positive, parts.negative, steps=STEPS)
    assert cache.hits > hits and cache.used[True] == 0


def test_a_persona_waits_once_a_step_and_launches_nothing_more(parts: Parts, gpu: tuple[Any, Any, Steps]) -> None:
    log, model, vanilla = gpu
    with log.paused():
        speaking, positive = comfy_persona.apply(model, parts.clip, persona.chain(), persona.PROMPT)
    counted(log, speaking, positive, parts.negative, steps=STEPS)
    found = counted(log, speaking, positive, parts.negative, steps=STEPS)
    assert found.launches[-1] == vanilla.launches[-1]
    assert found.syncs[-1] <= 1
