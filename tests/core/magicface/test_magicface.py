"""RSA, RBA, semantic map and S-CFG against naive, materialised float64; references, noise, cache, tokens."""

from __future__ import annotations

import logging
import math

import pytest
import torch
import torch.nn.functional as F

from lab.virtual_gpu import DEVICE, virtual_gpu
from likeness.core.attention import attend
from likeness.core.blocks import UNetLayout
from likeness.core.errors import LikenessError
from likeness.core.magicface import cache as cache_module
from likeness.core.magicface.cache import ReferenceCache
from likeness.core.magicface.constants import Constants, Rows
from likeness.core.magicface.guidance import guide
from likeness.core.magicface.injection import BlockKeys, rba, rsa
from likeness.core.magicface.maps import (
    MapBuilder,
    SemanticMap,
    complete,
    concept_columns,
    gaussian_kernel,
    replaced_columns,
)
from likeness.core.magicface.references import Capture, ReferencePath, ReferencesCaptured, noised, reference_noise
from likeness.core.magicface.regions import group_tokens
from likeness.core.magicface.request import MagicFaceRequest, MapOptions, Reference
from likeness.core.magicface.setting import RunSetting
from likeness.core.masks import mask_to_grid
from likeness.core.prompt import Word, find_phrase

LAYOUT = UNetLayout.from_counts([[1, 1], [1, 1], [1, 1], []], [1], [[], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
BLOCK = LAYOUT.blocks[-1]  # resolution factor 1
HEADS, WIDTH = 4, 32


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(index: int, grid=(4, 5), mask: torch.Tensor | None = None, weight: float = 3.0) -> Reference:
    return Reference(f"c{index}", rand(1, 4, *grid, seed=index), None, index, (index + 1,), mask, weight)


def captured(references: list[Reference], weighting: str) -> tuple[BlockKeys, list[torch.Tensor]]:
    """The core's keys of every reference, and the raw K, V (``2 M C``) they were made of."""
    keys, raw = [], []
    for i, r in enumerate(references):
        path = ReferencePath(r, i, weighting, LAYOUT)
        tokens = r.latent.shape[-2] * r.latent.shape[-1]
        kv = rand(2, tokens, WIDTH, seed=100 + i)
        capture = Capture((path,), (BLOCK,))
        with pytest.raises(ReferencesCaptured):
            capture.store(BLOCK, kv[:1], kv[1:])
        keys.append(tuple(path.keys(BLOCK, capture.entries[0][BLOCK])))
        raw.append(kv)
    return BlockKeys(tuple(keys)), raw


def naive_attention(q, k, v, multiplier, added) -> torch.Tensor:
    """``Softmax(M . Q K^T / sqrt(d) + A) V`` in float64, one row ``N C`` and one head at a time."""
    outs = []
    for qh, kh, vh in zip(*(x.double().chunk(HEADS, dim=-1) for x in (q, k, v)), strict=True):
        logits = qh @ kh.T / math.sqrt(qh.shape[-1])
        outs.append((multiplier * logits + added).softmax(dim=-1) @ vh)
    return torch.cat(outs, dim=-1)


def naive_weights(references: list[Reference], own: int, weighting: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiplier M and addend A of every key (own first), straight from the definitions."""
    multiplier, added = [torch.ones(own)], [torch.zeros(own)]
    for r in references:
        grid = tuple(r.latent.shape[-2:])
        inside = torch.ones(grid) if r.mask is None else mask_to_grid(r.mask, grid).float()
        inside = inside.flatten()
        if weighting == "multiplicative":
            multiplier.append(r.weight * inside)
            added.append(torch.zeros_like(inside))
        else:
            w = r.weight if weighting == "additive" else 0.0
            multiplier.append(torch.ones_like(inside))
            added.append(torch.where(inside > 0, torch.full_like(inside, w), torch.full_like(inside, -math.inf)))
    return torch.cat(multiplier).double(), torch.cat(added).double()


def half(height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(height, width)
    mask[:, : width // 2] = 1
    return mask


REFERENCE_SETS = {
    "one whole": [reference(0)],
    "one half": [reference(0, mask=half(50, 40))],
    "two": [reference(0, mask=half(8, 8)), reference(1, (6, 3), weight=1.5)],
    "four": [
        reference(0, mask=half(9, 70)),
        reference(1),
        reference(2, (2, 7), half(30, 31), 0.25),
        reference(3, weight=9.0),
    ],
}
WEIGHTINGS = ("additive", "multiplicative", "none")


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", REFERENCE_SETS)
def test_rsa_is_equation_2(name, weighting):
    references = REFERENCE_SETS[name]
    q, k, v = rand(2, 24, WIDTH, seed=7), rand(2, 24, WIDTH, seed=8), rand(2, 24, WIDTH, seed=9)
    keys, raw = captured(references, weighting)
    multiplier, added = naive_weights(references, 24, weighting)
    got = rsa(q, k, v, HEADS, keys)
    for row in range(2):
        k_hat = torch.cat([k[row], *(kv[0] for kv in raw)])
        v_hat = torch.cat([v[row], *(kv[1] for kv in raw)])
        expected = naive_attention(q[row], k_hat, v_hat, multiplier, added)
        assert torch.allclose(got[row].double(), expected, atol=2e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", REFERENCE_SETS)
def test_rba_is_equation_6(name, weighting):
    references = REFERENCE_SETS[name]
    q, k, v = rand(2, 24, WIDTH, seed=7), rand(2, 24, WIDTH, seed=8), rand(2, 24, WIDTH, seed=9)
    keys, raw = captured(references, weighting)
    labels = torch.randint(0, len(references) + 1, (2, 24), generator=torch.Generator().manual_seed(1))
    labels[1, :] = 0  # a picture whose map shows no concept
    labels[1, 3] = 1
    got = rba(q, k, v, HEADS, keys, group_tokens(labels, len(references)))
    for row in range(2):
        for token in range(24):
            chosen = [i for i in range(len(references)) if labels[row, token] == i + 1]
            multiplier, added = naive_weights([references[i] for i in chosen], 24, weighting)
            k_i = torch.cat([k[row], *(raw[i][0] for i in chosen)])
            v_i = torch.cat([v[row], *(raw[i][1] for i in chosen)])
            expected = naive_attention(q[row, token : token + 1], k_i, v_i, multiplier, added)
            assert torch.allclose(got[row, token].double(), expected[0], atol=2e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_another_patchs_attention_over_the_own_keys_changes_nothing_when_it_is_the_plain_one(weighting):
    references = REFERENCE_SETS["two"]
    q, k, v = rand(1, 24, WIDTH, seed=7), rand(1, 24, WIDTH, seed=8), rand(1, 24, WIDTH, seed=9)
    keys, _ = captured(references, weighting)
    groups = group_tokens(torch.arange(24)[None] % 3, 2)
    plain = attend(q, k, v, HEADS)
    assert torch.allclose(rsa(q, k, v, HEADS, keys, plain), rsa(q, k, v, HEADS, keys), atol=1e-5)
    assert torch.allclose(rba(q, k, v, HEADS, keys, groups, plain), rba(q, k, v, HEADS, keys, groups), atol=1e-5)
    assert not torch.allclose(rsa(q, k, v, HEADS, keys, 2 * plain), rsa(q, k, v, HEADS, keys), atol=1e-2)


def test_multiplicative_keeps_masked_out_keys_with_logit_zero():
    """With tiny logits the paper's reading gives every masked-out token its full share; dropping them would not."""
    r = [reference(0, mask=half(8, 8))]
    q, k, v = 1e-3 * rand(1, 24, WIDTH, seed=7), rand(1, 24, WIDTH, seed=8), rand(1, 24, WIDTH, seed=9)
    keys, raw = captured(r, "multiplicative")
    got = rsa(q, k, v, HEADS, keys)[0]
    everything = torch.cat([v[0], raw[0][1]]).mean(dim=0)
    assert torch.allclose(got, everything.expand_as(got), atol=5e-2)


# -- semantic map --------------------------------------------------------------------------------------------------


def naive_head_mean(q, k) -> torch.Tensor:
    maps = []
    for qh, kh in zip(q.double().chunk(HEADS, -1), k.double().chunk(HEADS, -1), strict=True):
        maps.append((qh @ kh.transpose(-1, -2) / math.sqrt(qh.shape[-1])).softmax(dim=-1))
    return torch.stack(maps).mean(dim=0)


def naive_completed(q, k, columns, how) -> torch.Tensor:
    s = naive_head_mean(q, k)
    power = {"none": torch.eye(s.shape[-1]).double(), "paper": s, "code": (s + 3 * s @ s) / 4}[how]
    return power @ columns.double()


def naive_smooth(planes: torch.Tensor) -> torch.Tensor:
    axis = [math.exp(-((x / 1.0) ** 2)) for x in (-1, 0, 1)]
    total = sum(axis) ** 2
    padded = F.pad(planes, (1, 1, 1, 1), mode="reflect")
    height, width = planes.shape[-2:]
    out = torch.zeros_like(planes)
    for i in range(3):
        for j in range(3):
            out += axis[i] * axis[j] / total * padded[..., i : i + height, j : j + width]
    return out


def naive_planes(layers, columns_of, how, target) -> torch.Tensor:
    """Mean over layers of completed, upsampled, smoothed columns with spatial mean 1, ``B J h w`` float64."""
    planes = []
    for q, k, cross, grid in layers:
        columns = naive_completed(q, k, columns_of(cross.double()), how)
        plane = columns.transpose(1, 2).reshape(columns.shape[0], -1, *grid)
        plane = naive_smooth(F.interpolate(plane, size=target, mode="bilinear", align_corners=False))
        planes.append(plane / (plane.mean(dim=(2, 3), keepdim=True) + 1e-8))
    return torch.stack(planes).mean(dim=0)


def layers(seed: int, grids=((8, 6), (8, 6), (4, 3)), tokens: int = 11):
    out = []
    for i, grid in enumerate(grids):
        n = grid[0] * grid[1]
        q, k = 2 * rand(2, n, WIDTH, seed=seed + i), 2 * rand(2, n, WIDTH, seed=seed + 50 + i)
        out.append((q, k, (3 * rand(2, n, tokens, seed=seed + 90 + i)).softmax(dim=-1), grid))
    return out


@pytest.mark.parametrize("how", ["paper", "code", "none"])
def test_completion(how):
    q, k, cross, _ = layers(0)[0]
    got = complete(q, k, cross, HEADS, how)
    assert torch.allclose(got.double(), naive_completed(q, k, cross, how), atol=1e-6)


def test_kernel_has_the_factor_two():
    kernel = gaussian_kernel()
    assert math.isclose(float(kernel[1, 1] / kernel[1, 0]), math.e, rel_tol=1e-5)
    assert math.isclose(float(kernel.sum()), 1, rel_tol=1e-6)


@pytest.mark.parametrize("how", ["paper", "code"])
@pytest.mark.parametrize("ca_scale", [0.9, 0.6])
def test_map_pipeline(how, ca_scale):
    concepts, target = ((2,), (4, 5)), (8, 6)
    cond, uncond = layers(0), layers(500)
    builder = MapBuilder(concepts, ca_scale, how, 77, target, [True, True, False, False])
    matrix = builder.columns(torch.zeros(1), 11, [None] * 4)
    for seen, empty in zip(cond, uncond, strict=True):
        q, k, cross = (torch.cat(pair) for pair in zip(seen[:3], empty[:3], strict=True))
        builder.add(q, k, cross @ matrix, HEADS, seen[3])
    others = [t for t in range(11) if t not in (2, 4, 5)]
    planes = naive_planes(
        cond,
        lambda c: torch.cat([c[..., [2]], c[..., [4]] + c[..., [5]], c[..., others]], dim=-1),
        how,
        target,
    )
    planes[:, 2:] *= ca_scale
    winner = planes.argmax(dim=1)
    fore = naive_planes(uncond, lambda c: torch.stack([c[..., 0], c[..., 1:].sum(-1)], -1), how, target)
    foreground = fore[:, 1] > fore[:, 0]
    labels = torch.where(winner < 2, winner + 1, torch.zeros_like(winner))
    if ca_scale < 0.9:
        labels = labels * foreground
    semantic = builder.semantic_map(builder.winner(), builder.inside())
    assert torch.equal(semantic.winner, winner)
    assert torch.equal(semantic.foreground, foreground)
    assert torch.equal(semantic.labels, labels)
    assert len(labels.unique()) > 1


def test_map_resolutions_are_shares_of_the_finest_attention():
    """SDXL's finest attention is at half the latent's side: its map is made at a quarter of it."""
    sdxl = UNetLayout.from_counts([[], [2, 2], [10, 10]], [10], [[10, 10, 10], [2, 2, 2], []])
    for layout, options, factors in (
        (LAYOUT, MapOptions(), {2, 4, 8}),
        (sdxl, MapOptions(), {4}),
        (sdxl, MapOptions((1, 2, 4, 8)), {2, 4}),
    ):
        setting = RunSetting.of(MagicFaceRequest((reference(0),), maps=options), layout, [3.0, 1.0, 0.0])
        assert {layout.factor(block) for block in setting.map_blocks} == factors


def test_concept_beyond_the_context_is_an_error():
    with pytest.raises(LikenessError, match="position 11"):
        concept_columns(11, [(11,)])


def test_columns_of_a_text_in_the_prompts_place_sum_to_the_prompts():
    """A text of three tokens, the second of which stands for two of the prompt's; it is repeated once."""
    shares = torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])
    cross = torch.rand(5, 6)
    prompt = cross[:, :3] @ shares + cross[:, 3:] @ shares
    made = cross @ replaced_columns(6, shares, lambda tokens: concept_columns(tokens, [(2,)]))
    torch.testing.assert_close(made, prompt[:, [2, 0, 1, 3]])
    plain = concept_columns(4, [(2,)])
    for tokens, given in ((4, None), (4, shares)):  # the prompt itself; a length that the shares do not know
        assert torch.equal(replaced_columns(tokens, given, lambda tokens: concept_columns(tokens, [(2,)])), plain)


def test_rows_are_taken_and_put_back_in_any_order():
    x = torch.arange(5)
    for rows in ([0, 1], [3, 4], [0, 2, 3], [4], [0, 1, 2, 3, 4]):
        mine = Rows(rows, Constants())
        others = Rows([row for row in range(5) if row not in rows], Constants())
        assert mine.take(x).tolist() == rows
        assert torch.equal(mine.put(mine.take(x), others.take(x)), x)


# -- S-CFG -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("scale", [2.0, 7.5, 30.0])
def test_scfg(restricted, scale):
    g = torch.Generator().manual_seed(3)
    winner = torch.randint(0, 5, (2, 4, 3), generator=g)
    foreground = torch.rand(2, 4, 3, generator=g) > 0.4
    cond, uncond = rand(2, 4, 8, 6, seed=1), rand(2, 4, 8, 6, seed=2)
    cond[:, :, :, :3] *= 5  # regions far from the mean, so that the clamps act
    got = guide(cond, uncond, scale, SemanticMap(winner, foreground, 2, 5, restricted))
    up = lambda x: x.double().repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)  # noqa: E731
    delta = (cond - uncond).double()
    norm = delta.pow(2).sum(dim=1).sqrt()
    rate = torch.zeros(2, 8, 6, dtype=torch.float64)
    for row in range(2):
        fore = up(foreground[row])
        wanted = (norm[row] * fore).sum() / fore.sum()
        for region in range(5):
            inside = up(winner[row] == region) * (fore if restricted else 1)
            if inside.sum() > 0:
                rate[row] += inside * wanted / ((norm[row] * inside).sum() / inside.sum())
    rate = rate.clamp(0.8, 3.0).clamp(max=15 / scale)
    expected = uncond.double() + scale * naive_smooth(rate[:, None]) * delta
    assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_guidance_without_a_map_is_plain():
    cond, uncond = rand(1, 4, 4, 4, seed=1), rand(1, 4, 4, 4, seed=2)
    assert torch.equal(guide(cond, uncond, 7.5, None), uncond + 7.5 * (cond - uncond))


# -- references ------------------------------------------------------------------------------------------------------


def test_noise_depends_on_seed_sigma_and_place_only():
    same = reference_noise((1, 4, 8, 8), 5, 2.0, 0)
    assert torch.equal(same, reference_noise((1, 4, 8, 8), 5, 2.0 * (1 + 1e-7), 0))
    for seed, sigma, index in ((6, 2.0, 0), (5, 2.1, 0), (5, 2.0, 1)):
        assert not torch.equal(same, reference_noise((1, 4, 8, 8), seed, sigma, index))
    assert abs(float(reference_noise((1, 4, 64, 64), 0, 1.0, 0).std()) - 1) < 0.02


def test_forward_process():
    z = rand(1, 4, 8, 8)
    assert torch.allclose(noised(z, 1, 3.0, 0), z + 3.0 * reference_noise((1, 4, 8, 8), 1, 3.0, 0))


def test_cache_key_covers_what_k_v_depend_on():
    def key(r, index=0, weighting="additive", model="m", seed=0, blocks=(BLOCK,)):
        return ReferencePath(r, index, weighting, LAYOUT).cache_key(model, seed, blocks)

    base = reference(0)
    assert key(base) == key(reference(0, weight=7.0)) == key(base, weighting="none")
    others = [
        key(reference(1)),
        key(reference(0, mask=half(8, 8))),
        key(base, index=1),
        key(base, weighting="multiplicative"),
        key(base, model="n"),
        key(base, seed=1),
        key(base, blocks=LAYOUT.blocks),
    ]
    assert key(base) not in others
    assert len(set(others)) == len(others)


def entry(fill: float, size: int = 256):
    return {BLOCK: (torch.full((size, 256), fill), torch.full((size, 256), fill))}  # 512 KiB at the default size


def test_cache_never_evicts_what_the_present_run_uses():
    store = ReferenceCache(device_mb=0, host_mb=1)
    cpu = torch.device("cpu")
    store.begin_run()
    assert store.put("a", entry(1.0)) and store.put("b", entry(2.0))
    assert not store.put("c", entry(3.0))  # full
    store.begin_run()
    assert store.get("a", cpu)[BLOCK][0][0, 0] == 1.0
    assert store.put("c", entry(3.0))  # takes the place of b, unused in this run
    assert store.get("b", cpu) is None
    assert store.get("a", cpu) is not None and store.get("c", cpu)[BLOCK][1][0, 0] == 3.0
    assert store.used[False] == 2**20


def on_device(store: ReferenceCache, total: int) -> None:
    """The device has ``total`` bytes; the cache, and the entry that is about to be kept, are all that lies there."""
    store.free_bytes = lambda _: total - store.used[True] - 2**19


def there(fill: float):
    """512 KiB on the device."""
    return {block: (k.to(DEVICE), v.to(DEVICE)) for block, (k, v) in entry(float(fill)).items()}


def test_what_the_forward_needs_stays_free_on_the_device():
    """Of 3 MiB the forward needs 1.6: one MiB goes to the cache, and no byte more."""
    with virtual_gpu():
        store = ReferenceCache(device_mb=100, host_mb=100)
        on_device(store, 3 * 2**20)
        store.begin_run(reserve=int(1.6 * 2**20))
        assert all(store.put(i, there(i)) for i in range(6))
        assert store.used == {True: 2**20, False: 2 * 2**20}
        assert [store.get(i, DEVICE)[BLOCK][0].device for i in range(6)] == [DEVICE] * 6
        store.free_bytes = lambda _: 0  # somebody else has taken it
        store.relieve(DEVICE)
        assert store.used == {True: 0, False: 3 * 2**20}
        assert all(float(store.get(i, DEVICE)[BLOCK][1][0, 0]) == i for i in range(6)), "nothing is lost"


def test_between_runs_nothing_is_on_the_device():
    with virtual_gpu():
        store = ReferenceCache(device_mb=100, host_mb=1)
        for i in range(4):
            assert store.put(i, there(i))
        assert store.used == {True: 2 * 2**20, False: 0}
        store.end_run()
        assert store.used == {True: 0, False: 2**20}, "as much as host memory may take"
        assert sum(store.get(i, DEVICE) is not None for i in range(4)) == 2


def test_cache_of_no_size_keeps_nothing():
    store = ReferenceCache(0, 0)
    assert not store.put("a", entry(1.0))
    assert len(store) == 0


def test_cache_out_of_memory_is_a_warning(monkeypatch, caplog):
    store = ReferenceCache()

    def fail(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(store, "_keep", fail)
    with caplog.at_level(logging.WARNING, logger=cache_module.log.name):
        assert not store.put("a", entry(1.0))
    assert "going on without" in caplog.text
    assert len(store) == 0


# -- requests and tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: reference(0, weight=-1), "weight"),
        (lambda: Reference("x", torch.full((1, 4, 2, 2), float("nan")), None, 0, ()), "NaN"),
        (lambda: Reference("x", torch.zeros(4, 2, 2), None, 0, ()), "shape"),
        (lambda: reference(0, mask=torch.ones(1, 4, 4)), "mask"),
        (lambda: MagicFaceRequest((), alpha=1.5), "alpha"),
        (lambda: MagicFaceRequest((), weighting="odd"), "weighting"),
        (lambda: MapOptions(completion="odd"), "completion"),
        (lambda: MapOptions(factors=()), "resolutions"),
        (lambda: MapOptions(ca_scale=0.0), "ca_scale"),
    ],
)
def test_bad_requests_say_what_is_wrong(make, said):
    with pytest.raises(LikenessError, match=said):
        make()


def words(*tokens: int, inside: tuple[int, ...] = ()) -> list[Word]:
    """Tokens at positions from 1; a word goes on after the tokens in ``inside``."""
    return [Word(token, i, token not in inside) for i, token in enumerate(tokens, start=1)]


def test_find_phrase():
    def find(phrase, prompt):
        return find_phrase(phrase, prompt, name="glove", text="a man", source="Apply: prompt")

    prompt = words(10, 11, 12, 10, 11)
    assert find(words(10, 11), prompt) == [(1, 2), (4, 5)]
    assert find(words(12), prompt) == [(3,)]
    assert find(words(11), words(10, 11, 12, 11, inside=(10,))) == [(4,)], "not inside a longer word"
    with pytest.raises(LikenessError, match="'a man', in which the concept 'glove' does not occur"):
        find(words(99), prompt)
    with pytest.raises(LikenessError, match="a word or phrase"):
        find([], prompt)
