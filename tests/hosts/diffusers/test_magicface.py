"""MagicFace on a tiny diffusers UNet of SD1.5's topology."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from likeness.core.blocks import BlockId
from likeness.core.errors import LikenessError
from likeness.core.magicface.cache import ReferenceCache
from likeness.core.magicface.concepts import Placement, group_references
from likeness.core.magicface.maps import SemanticMap
from likeness.core.magicface.record import Recorder
from likeness.core.magicface.references import noised
from likeness.core.magicface.request import MagicFaceRequest, MapOptions, Reference
from likeness.core.masks import Frame, mask_to_grid
from likeness.core.schedule import schedule_sigmas, timestep_sigma
from likeness.hosts.diffusers.common import model_digest, processor_names, unet_layout
from likeness.hosts.diffusers.magicface import magicface, make_reference, sample_magicface
from likeness.hosts.diffusers.sampling import Conditioning, guided_denoiser, sample

CROSS = 32
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small only lose by being split among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 64, 64),
        norm_num_groups=32,
        cross_attention_dim=CROSS,
        attention_head_dim=8,
    )
    return model.eval().double()  # double, so that only real differences show


def ddim(steps: int = 3) -> DDIMScheduler:
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    return scheduler


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COND, UNCOND = Conditioning(rand(1, 77, CROSS, seed=1)), Conditioning(rand(1, 77, CROSS, seed=2))


def half(height: int = 64, width: int = 48) -> torch.Tensor:
    mask = torch.zeros(height, width)
    mask[:, : width // 2] = 1
    return mask


def reference(i: int = 0, grid=(16, 16), mask=None, weight: float = 3.0, positions=None) -> Reference:
    context = Conditioning(rand(1, 77, CROSS, seed=40 + i))
    where = (3 + i,) if positions is None else positions
    return Reference(f"concept{i}", rand(1, 4, *grid, seed=20 + i), context, i, where, mask, weight)


def ask(*references: Reference, **options) -> MagicFaceRequest:
    """A request that over three steps goes RSA, RBA, RBA."""
    return MagicFaceRequest(references, **{"alpha": 0.3, **options})


def run(unet, request, x=None, steps: int = 3, split: bool = False, scheduler=None, **options) -> torch.Tensor:
    x = rand(1, 4, 16, 16) if x is None else x
    return sample_magicface(unet, request, scheduler or ddim(steps), x, COND, UNCOND, split=split, **options)


def vanilla(unet, x=None, steps: int = 3) -> torch.Tensor:
    x = rand(1, 4, 16, 16) if x is None else x
    return sample(guided_denoiser(unet, COND, UNCOND, 7.5), x, ddim(steps))


# -- nothing to do is vanilla ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "references", [(), (reference(weight=0.0),), (reference(mask=torch.zeros(9, 9)),)], ids=["none", "weight", "mask"]
)
def test_strength_zero_is_vanilla_bit_for_bit(unet, references):
    assert torch.equal(run(unet, ask(*references, scfg=True)), vanilla(unet))


def test_rba_before_any_map_and_background_only_are_vanilla(unet):
    """alpha 0 with one step: no map exists yet, so every pixel is background."""
    got = run(unet, ask(reference(), alpha=0.0), steps=1)
    assert torch.allclose(got, vanilla(unet, steps=1), atol=1e-12)


def test_watching_changes_nothing(unet):
    references = (reference(mask=half()), reference(1))
    plain = run(unet, ask(*references))
    assert torch.equal(run(unet, ask(*references, recorder=Recorder(patches=((0.5, 0.5),)))), plain)


# -- exactness of a whole forward ------------------------------------------------------------------------------------


class NaiveRSA:
    """Materialised RSA in the conditional row (the second), additive weighting, K, V given per block."""

    def __init__(self, keys):
        self.keys = keys

    def __call__(self, attn, x, encoder_hidden_states=None, attention_mask=None, **_):
        q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        rows = []
        for row in range(2):
            k_hat, v_hat, added = k[row], v[row], torch.zeros(k.shape[1], dtype=x.dtype)
            if row == 1:
                for kr, vr, inside, w in self.keys:
                    k_hat, v_hat = torch.cat([k_hat, kr]), torch.cat([v_hat, vr])
                    added = torch.cat([added, torch.where(inside, w, -math.inf)])
            heads = zip(*(t.chunk(attn.heads, dim=-1) for t in (q[row], k_hat, v_hat)), strict=True)
            out = [(a @ b.T / math.sqrt(a.shape[-1]) + added).softmax(-1) @ c for a, b, c in heads]
            rows.append(torch.cat(out, dim=-1))
        return attn.to_out[0](torch.stack(rows))


@torch.no_grad()
def test_one_forward_equals_naive_rsa(unet):
    references = (reference(0, mask=half()), reference(1, (8, 24), weight=1.5))
    scheduler = ddim()
    t = scheduler.timesteps[0]
    sigma = timestep_sigma(scheduler.alphas_cumprod, float(t))
    names = {name: block for name, (block, cross) in processor_names(unet).items() if not cross}
    chosen = {name: block for name, block in names.items() if block.level_name in ("up2", "up3")}
    modules = dict(unet.named_modules())
    keys: dict[str, list] = {name: [] for name in chosen}
    layout = unet_layout(unet)
    for i, r in enumerate(references):
        taken = {}
        hooks = [
            getattr(modules[name.removesuffix(".processor")], part).register_forward_hook(
                lambda m, a, out, at=(name, part), taken=taken: taken.__setitem__(at, out[0])
            )
            for name in chosen
            for part in ("to_k", "to_v")
        ]
        latent = noised(r.latent, 0, sigma, i) / math.sqrt(1 + sigma**2)
        unet(latent, t, encoder_hidden_states=r.context.context)
        for hook in hooks:
            hook.remove()
        for name, block in chosen.items():
            grid = tuple(-(-side // layout.factor(block)) for side in r.latent.shape[-2:])
            inside = torch.ones(grid, dtype=torch.bool) if r.mask is None else mask_to_grid(r.mask, grid)
            keys[name].append((taken[name, "to_k"], taken[name, "to_v"], inside.flatten(), r.weight))
    originals = dict(unet.attn_processors)
    x = rand(1, 4, 16, 16)
    rows, context = torch.cat([x, x]), torch.cat([UNCOND.context, COND.context])
    try:
        unet.set_attn_processor({**originals, **{name: NaiveRSA(keys[name]) for name in chosen}})
        expected = unet(rows, t, encoder_hidden_states=context).sample
    finally:
        unet.set_attn_processor(originals)
    with magicface(unet, ask(*references), scheduler) as session, session.call(t, [False, True], rows):
        got = unet(rows, t, encoder_hidden_states=context).sample
    assert (got - expected).abs().max() < 1e-6
    plain = unet(rows, t, encoder_hidden_states=context).sample
    assert (got[1] - plain[1]).abs().max() > 1e-3
    assert torch.allclose(got[0], plain[0], atol=1e-12)  # unconditional rows stay plain


# -- the shapes of requests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count, weighting", [(1, "additive"), (2, "none"), (3, "additive"), (4, "additive"), (4, "multiplicative")]
)
def test_any_number_of_references(unet, count, weighting):
    sizes = [(16, 16), (8, 24), (16, 16), (11, 13)]
    references = tuple(reference(i, sizes[i], half() if i % 2 else None) for i in range(count))
    got = run(unet, ask(*references, weighting=weighting))
    assert torch.isfinite(got).all()
    assert not torch.allclose(got, vanilla(unet), atol=1e-2)


def test_masks_make_a_difference_and_a_full_one_is_none(unet):
    whole = run(unet, ask(reference()))
    assert torch.equal(run(unet, ask(reference(mask=torch.ones(7, 9)))), whole)
    assert not torch.allclose(run(unet, ask(reference(mask=half()))), whole, atol=1e-3)


@pytest.mark.parametrize("grid", [(17, 12), (9, 21), (16, 24)])
def test_odd_and_oblong_latents(unet, grid):
    x = rand(1, 4, *grid)
    got = run(unet, ask(reference(0, (13, 10), half()), reference(1)), x)
    assert got.shape == x.shape
    assert torch.isfinite(got).all()


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_a_batch_is_its_pictures(unet, alpha):
    request = ask(reference(0, mask=half()), reference(1), alpha=alpha, scfg=True)
    x = rand(2, 4, 16, 16)
    together = run(unet, request, x)
    apart = torch.cat([run(unet, request, x[i : i + 1]) for i in range(2)])
    assert (together - apart).abs().max() < 1e-4  # maps are float32: only rounding
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.parametrize("scfg", [False, True])
def test_rows_together_or_split_are_the_same(unet, scfg):
    request = ask(reference(0, mask=half()), reference(1), scfg=scfg)
    assert (run(unet, request) - run(unet, request, split=True)).abs().max() < 1e-4


def test_order_of_split_calls_does_not_matter(unet):
    request = ask(reference(0, mask=half()), reference(1), alpha=0.25)

    def denoised(order):
        scheduler = ddim(3)
        with magicface(unet, request, scheduler) as session:

            def denoise(x, t):
                out = {}
                for label in order:
                    with session.call(t, [label], x):
                        context = (COND if label else UNCOND).context
                        out[label] = unet(x, t, encoder_hidden_states=context, return_dict=False)[0]
                return session.guide(out[True], out[False], 7.5)

            return sample(denoise, rand(1, 4, 16, 16), scheduler)

    assert torch.equal(denoised((True, False)), denoised((False, True)))


def test_without_guidance(unet):
    request = ask(reference(0, mask=half()), reference(1))
    got = sample_magicface(unet, request, ddim(), rand(1, 4, 16, 16), COND, None)
    assert torch.isfinite(got).all()


def test_a_sampler_that_calls_twice_a_step(unet):
    scheduler = HeunDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(4)
    recorder = Recorder()
    request = ask(reference(0, mask=half()), reference(1), alpha=0.4, recorder=recorder)
    got = run(unet, request, scheduler=scheduler)
    assert torch.isfinite(got).all()
    assert [record.stage for record in recorder.steps] == ["rsa", "rsa", "rba", "rba"]
    scheduler.set_timesteps(4)
    assert torch.equal(run(unet, ask(*request.references, alpha=0.4), scheduler=scheduler), got)


def test_stage_switches_at_alpha(unet):
    for alpha, count in ((0.0, 0), (0.4, 2), (0.45, 3), (1.0, 5)):
        recorder = Recorder()
        run(unet, ask(reference(), alpha=alpha, recorder=recorder), steps=5)
        assert [r.stage for r in recorder.steps].count("rsa") == count


def test_alpha_counts_from_where_sampling_starts(unet):
    recorder = Recorder()
    request = ask(reference(), alpha=0.5, recorder=recorder)
    got = run(unet, request, scheduler=ddim(6), start=4)
    assert [r.stage for r in recorder.steps] == ["rsa", "rba"]
    assert torch.isfinite(got).all()


def test_references_with_texts_of_different_length(unet):
    long = Conditioning(rand(1, 154, CROSS, seed=3))
    pair = [make_reference(n, rand(1, 4, 8, 8), c, (3,)) for n, c in (("a", COND), ("b", long))]
    assert pair[0].context_key != pair[1].context_key
    assert torch.isfinite(run(unet, ask(*pair))).all()


@pytest.mark.parametrize(
    "options", [{"layers": "mid"}, {"layers": "all"}, {"maps": MapOptions((1, 2), "code", 0.5)}, {"noise_seed": 3}]
)
def test_options_matter(unet, options):
    references = (reference(0, mask=half()), reference(1))
    a, b = run(unet, ask(*references)), run(unet, ask(*references, **options))
    assert torch.isfinite(b).all()
    assert not torch.allclose(a, b, atol=1e-6)


# -- regions the user gives ------------------------------------------------------------------------------------------


def placed(i: int, region: torch.Tensor, **options) -> Reference:
    return replace(reference(i, mask=half(), **options), region=region)


def test_a_region_of_the_whole_picture_is_rsa_from_the_first_step(unet):
    """One concept that is everywhere: group 1 is all queries, and attends what RSA attends; no map is waited for."""
    everywhere = run(unet, ask(placed(0, torch.ones(5, 7)), alpha=0.0))
    assert torch.allclose(everywhere, run(unet, ask(reference(mask=half()), alpha=1.0)), atol=1e-10)


def test_a_region_that_holds_nothing_is_vanilla(unet):
    assert torch.allclose(run(unet, ask(placed(0, torch.zeros(8, 8)), alpha=0.0)), vanilla(unet), atol=1e-10)


def test_regions_hold_whatever_the_words_say(unet):
    """With all concepts placed, another prompt position changes nothing, and no map is made."""
    left, right = half(), 1 - half()
    given = [ask(placed(0, left, positions=(p,)), placed(1, right, positions=(q,))) for p, q in ((3, 4), (9, 30))]
    assert torch.equal(*(run(unet, request) for request in given))
    swapped = run(unet, ask(placed(0, right), placed(1, left)))
    assert not torch.allclose(swapped, run(unet, given[0]), atol=1e-6)


def test_the_same_word_in_two_places_is_two_concepts(unet):
    left, right = half(), 1 - half()
    apart = run(unet, ask(placed(0, left, positions=(3,)), placed(1, right, positions=(3,))))
    assert torch.equal(apart, run(unet, ask(placed(0, left, positions=(3,)), placed(1, right, positions=(4,)))))
    together = run(unet, ask(placed(0, left, positions=(3,)), placed(1, left.clone(), positions=(3,))))
    assert not torch.allclose(apart, together, atol=1e-6)


@pytest.mark.parametrize("grid", [(16, 16), (9, 21)])
def test_one_concept_placed_beside_one_that_is_found(unet, grid):
    """The found one keeps the map's places outside the region; the preview shows the labels that were used."""
    x, steps = rand(1, 4, *grid), []
    for other in (reference(1, mask=half()), placed(1, half())):
        recorder = Recorder()
        run(unet, ask(reference(0, mask=half()), other, recorder=recorder), x)
        steps.append([step for step in recorder.steps if step.labels is not None])
    inside = mask_to_grid(half(), steps[0][0].labels.shape[-2:])
    for step in steps[1]:
        assert (step.labels[0][inside] == 2).all() and not (step.labels[0][~inside] == 2).any()
    free, given = (which[0].labels[0] for which in steps)  # of the RSA step, in which both runs are the same
    assert (free == 1).any(), "something is found"
    assert torch.equal(given[~inside] == 1, free[~inside] == 1)


def test_labels_of_placed_and_found_concepts():
    """Overlaps go to the later one, a placed word's find outside its region is background, parts take their part."""
    top = torch.zeros(4, 4)
    top[:2] = 1
    concepts = group_references([reference(0), placed(1, top), placed(2, half(4, 4)), reference(0)])
    assert [c.members for c in concepts] == [(0, 3), (1,), (2,)]
    placement = Placement(concepts)
    found = torch.tensor([[0, 3, 1, 2]]).expand(4, 4)[None]
    semantic = SemanticMap((found - 1) % 4, None, 3, 4, False)
    assert torch.equal(semantic.labels, found)
    expected = torch.tensor([[3, 3, 2, 2], [3, 3, 2, 2], [3, 3, 1, 0], [3, 3, 1, 0]])
    assert torch.equal(placement.labels(semantic, (4, 4))[0], expected)
    corner = SemanticMap(semantic.winner[:, 2:, 1:3], None, 3, 4, False)
    assert torch.equal(placement.labels(corner, (2, 2), Frame(0.5, 0.25, 0.5, 0.5))[0], expected[2:, 1:3])
    no_map = torch.tensor([[3, 3, 2, 2], [3, 3, 2, 2], [3, 3, 0, 0], [3, 3, 0, 0]])
    assert torch.equal(placement.labels(None, (4, 4))[0], no_map)


def test_references_with_the_same_word_share_a_region(unet):
    recorder = Recorder()
    two = (reference(0, positions=(3,)), reference(1, positions=(3,)))
    run(unet, ask(*two, recorder=recorder))
    assert max(int(record.labels.max()) for record in recorder.steps) == 1
    numbers = torch.cat([c.reference.flatten() for c in recorder.correspondence])
    assert {1, 2} <= set(numbers.tolist())


# -- state -----------------------------------------------------------------------------------------------------------


def test_two_runs_are_identical_and_leave_the_unet_alone(unet):
    before = dict(unet.attn_processors)
    request = ask(reference(0, mask=half()), reference(1))
    first = run(unet, request)
    assert torch.equal(first, run(unet, request))
    assert all(unet.attn_processors[name] is processor for name, processor in before.items())


def test_cache_hit_equals_uncached(unet):
    references = (reference(0, mask=half()), reference(1, (8, 24)))
    cached = ask(*references)
    uncached = ask(*references, cache=ReferenceCache(0, 0))
    first = run(unet, cached)
    assert (cached.cache.hits, cached.cache.misses) == (0, 6)
    assert torch.equal(first, run(unet, uncached))
    other_picture = rand(1, 4, 16, 16, seed=99)
    again = run(unet, cached, other_picture)
    assert (cached.cache.hits, cached.cache.misses) == (6, 6)
    assert torch.equal(again, run(unet, uncached, other_picture))
    assert len(uncached.cache) == 0


def test_a_shared_cache_knows_other_weights(unet):
    cache = ReferenceCache()
    request = ask(reference(), cache=cache)
    run(unet, request)
    changed = dict(unet.state_dict())
    name = "up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    keep = changed[name].clone()
    before = model_digest(unet)
    try:
        with torch.no_grad():
            changed[name].mul_(1.5)
        assert model_digest(unet) != before
        run(unet, request)
        assert cache.hits == 0
    finally:
        with torch.no_grad():
            changed[name].copy_(keep)
    assert model_digest(unet) == before


class Stop(Exception):
    pass


def test_interrupt_leaves_nothing_behind(unet):
    before = dict(unet.attn_processors)
    held = []

    def stop(done, total, latents):
        if done == 2:
            raise Stop("first")

    scheduler = ddim()
    with pytest.raises(Stop, match="first"), magicface(unet, ask(reference()), scheduler) as session:
        held.append(session)
        sample(guided_denoiser(unet, COND, UNCOND, session=session), rand(1, 4, 16, 16), scheduler, stop)
    assert all(unet.attn_processors[name] is processor for name, processor in before.items())
    state = held[0]
    assert state.active is None and state.capture is None
    assert not state.run.enabled and not state.run._maps and state.run._keys is None
    assert torch.equal(vanilla(unet), vanilla(unet))


@pytest.mark.parametrize("during", ["reference", "picture"])
def test_an_error_inside_the_unet_survives_cleanup(unet, during):
    before = dict(unet.attn_processors)
    rows = {"reference": 1, "picture": 2}[during]

    def fail(module, args):
        if args[0].shape[0] == rows:
            raise Stop(during)

    hook = unet.mid_block.register_forward_pre_hook(fail)
    try:
        with pytest.raises(Stop, match=during):
            run(unet, ask(reference()))
    finally:
        hook.remove()
    assert all(unet.attn_processors[name] is processor for name, processor in before.items())
    assert torch.isfinite(run(unet, ask(reference()))).all()


class OtherProcessor(AttnProcessor2_0):
    """Another pack's processor: the plain result, scaled; not one of diffusers' own classes as far as type goes."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor
        self.rows = 0

    def __call__(self, attn, hidden_states, *args, **kwargs):
        self.rows += hidden_states.shape[0]
        return self.factor * super().__call__(attn, hidden_states, *args, **kwargs)


def with_other_patch(unet, factor, request):
    originals = dict(unet.attn_processors)
    other = OtherProcessor(factor)
    ours = {n: (b, cross) for n, (b, cross) in processor_names(unet).items()}
    replaced = {n: other if n in ours and not ours[n][1] else p for n, p in originals.items()}
    try:
        unet.set_attn_processor(dict(replaced))
        out = run(unet, request) if request else vanilla(unet)
        assert all(unet.attn_processors[n] is p for n, p in replaced.items())
    finally:
        unet.set_attn_processor(originals)
    return out, other


def test_a_foreign_processor_keeps_working(unet):
    request = ask(reference(0, mask=half()), reference(1))
    neutral, other = with_other_patch(unet, 1.0, request)
    assert other.rows > 0
    assert (neutral - run(unet, request)).abs().max() < 1e-4
    louder, _ = with_other_patch(unet, 1.3, request)
    assert not torch.allclose(louder, neutral, atol=1e-2)
    assert not torch.allclose(louder, with_other_patch(unet, 1.3, None)[0], atol=1e-2)


# -- previews --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["additive", "multiplicative"])
def test_recorder(unet, weighting):
    recorder = Recorder(patches=((0.1, 0.9), (0.5, 0.5)), moments=(0.0, 1.0))
    references = (reference(0, mask=half()), reference(1, (8, 24)))
    request = ask(*references, recorder=recorder, weighting=weighting)
    for _ in range(2):  # the second run begins afresh
        run(unet, request)
    assert [r.step for r in recorder.steps] == [0, 1, 2]
    assert [r.stage for r in recorder.steps] == ["rsa", "rba", "rba"]
    assert all(r.labels.shape == (1, 8, 8) and r.labels.max() <= 2 for r in recorder.steps)
    assert [c.step for c in recorder.correspondence] == [0, 2]
    first = recorder.correspondence[0]
    assert first.grid == (16, 16)
    assert set(first.reference.unique().tolist()) <= {1, 2}
    assert (first.x[first.reference == 1] < 0.5).all()  # inside the mask's left half
    assert ((first.mass > 0) & (first.mass <= 1)).all()
    assert [p.patch for p in recorder.patches_seen] == [(0.1, 0.9), (0.5, 0.5)] * 2
    seen = recorder.patches_seen[0]
    assert [tuple(m.shape) for m in seen.maps] == [(16, 16), (8, 24)]
    assert (seen.maps[0][:, 8:] == 0).all()
    assert math.isclose(sum(float(m.sum()) for m in seen.maps), float(first.mass[1, 14]), rel_tol=1e-4)


def test_recorded_background_looks_at_no_reference(unet):
    recorder = Recorder(moments=(1.0,))
    run(unet, ask(reference(0, mask=half()), reference(1), recorder=recorder))
    last = recorder.correspondence[-1]
    assert ((last.reference == 0) == (last.mass == 0)).all()
    assert (last.mass == 0).any() and (last.mass > 0).any()


# -- other structures, errors ----------------------------------------------------------------------------------------


def sdxl_like() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        cross_attention_dim=CROSS,
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
    ).eval()


def test_sdxl_like_structure():
    model = sdxl_like()
    layout = unet_layout(model)
    assert layout.levels == ("down1", "down2", "mid", "up0", "up1")
    assert layout.factors == (2, 4)
    chosen = layout.finest_decoder_levels()
    assert len(chosen) == 3 * 3 + 3 * 2
    assert chosen[0] == BlockId("up", 0) and chosen[-1] == BlockId("up", 1, 2, 1)
    added = {"text_embeds": torch.randn(1, 16), "time_ids": torch.randn(1, 6)}
    cond, uncond, own = (Conditioning(torch.randn(1, 77, CROSS), added) for _ in range(3))
    r = Reference("a", torch.randn(1, 4, 16, 16), own, 0, (2,), half())
    scheduler, x = ddim(), torch.randn(1, 4, 16, 16)
    got = sample_magicface(model, MagicFaceRequest((r,)), scheduler, x, cond, uncond)
    plain = sample(guided_denoiser(model, cond, uncond), x, ddim())
    assert torch.isfinite(got).all()
    assert not torch.allclose(got, plain, atol=1e-2)


def test_schedule_of_a_scheduler():
    scheduler = ddim(5)
    sigmas = schedule_sigmas(scheduler.alphas_cumprod, scheduler.timesteps)
    assert len(sigmas) == 6 and sigmas[-1] == 0
    alpha = scheduler.alphas_cumprod[scheduler.timesteps[1]]
    assert math.isclose(sigmas[1], float(((1 - alpha) / alpha).sqrt()), rel_tol=1e-5)
    low, middle, high = (timestep_sigma(scheduler.alphas_cumprod, t) for t in (10, 10.5, 11))
    assert math.isclose(middle, math.sqrt(low * high), rel_tol=1e-9)


class Transformer(torch.nn.Module):
    """A model without UNet levels."""


def test_errors_name_input_and_fix(unet):
    with pytest.raises(LikenessError, match="DiT"), magicface(Transformer(), MagicFaceRequest(()), ddim()):
        pass
    with pytest.raises(LikenessError, match="NaN"):
        run(unet, MagicFaceRequest(()), torch.full((1, 4, 16, 16), float("nan")))
    wide = Reference("a", torch.randn(1, 4, 8, 8), Conditioning(torch.randn(1, 77, 768)), 0, (1,))
    with pytest.raises(LikenessError, match="768 wide"):
        run(unet, MagicFaceRequest((wide,)))
    flux = Reference("a", torch.randn(1, 16, 8, 8), COND, 0, (1,))
    with pytest.raises(LikenessError, match="16 channels"):
        run(unet, MagicFaceRequest((flux,)))
    with pytest.raises(LikenessError, match="token positions"):
        run(unet, MagicFaceRequest((reference(positions=()),)))
    with pytest.raises(LikenessError, match="position 80"):
        run(unet, MagicFaceRequest((reference(positions=(80,)),)))
    with pytest.raises(LikenessError, match="layers"):
        run(unet, ask(reference(), layers="up7"))
    assert torch.isfinite(run(unet, MagicFaceRequest((reference(positions=()),), alpha=1.0))).all()
