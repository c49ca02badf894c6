"""The training loop on tiny random models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.persona_tiny import config, photo, tiny_host, trainer

from likeness.core.errors import LikenessError
from likeness.core.persona.losses import identity_loss, identity_weight, masked_mse
from likeness.core.persona.tandem import TandemConfig
from likeness.core.schedule import clean_estimate
from likeness.training.persona.request import PersonaTraining
from likeness.training.persona.state import load_state, save_state
from likeness.training.persona.trainer import PersonaTrainer, train


def test_masked_mse_is_the_formula():
    predicted, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    mask = torch.rand(2, 1, 8, 8)
    wanted = sum(((predicted[b] - noise[b]).pow(2) * mask[b]).sum() / (4 * mask[b].sum()) for b in range(2)) / 2
    assert masked_mse(predicted, noise, mask).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_identity_terms():
    assert identity_weight(torch.tensor([0, 400, 800, 1000])).tolist() == pytest.approx([1, 0.809, 0.309, 0], abs=1e-3)
    assert identity_weight(torch.arange(1000)).mean().item() == pytest.approx(0.6366, abs=1e-3)
    latent, noise, alpha = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.tensor([0.3, 0.8])
    level = alpha.view(-1, 1, 1, 1)
    assert torch.allclose(
        clean_estimate(level.sqrt() * latent + (1 - level).sqrt() * noise, noise, alpha), latent, atol=1e-5
    )
    e = torch.eye(3)
    assert identity_loss(e[:1], e[1:2], torch.tensor([0])).item() == pytest.approx(1.0)


def test_thirty_steps_lower_the_loss():
    host = tiny_host()
    with torch.no_grad():  # a random UNet hardly listens to its prompt: make it
        for name, parameter in host.unet.named_parameters():
            if "attn2.to_v" in name:
                parameter.mul_(6)
    run = trainer(host, steps=30, learning_rate=3e-3, residual_dropout=0.0)
    fixed = run.batch(10_000, (400, 800))
    run.batch = lambda step, bounds: fixed
    train(run)
    assert sum(run.history[-3:]) / 3 < 0.98 * run.history[0]


def test_only_the_mapper_learns_and_the_host_is_left_as_found():
    host = tiny_host()
    before = {k: v.clone() for k, v in host.unet.state_dict().items()}
    processors = dict(host.unet.attn_processors)
    flags = [p.requires_grad for p in host.unet.parameters()]
    run = trainer(host, steps=2)
    with host.open() as denoise:
        assert not any(p.requires_grad for p in host.unet.parameters())
        run.advance(denoise, (400, 800))
    assert all(torch.equal(v, before[k]) for k, v in host.unet.state_dict().items())
    assert all(p.grad is None for p in host.unet.parameters())
    assert all(p.grad is None for p in host.text.body.parameters())
    assert [p.requires_grad for p in host.unet.parameters()] == flags
    assert host.unet.attn_processors == processors
    assert all(p.grad is not None for p in run.mapper.parameters())


def test_host_is_restored_when_a_step_fails_and_the_first_error_is_seen():
    host = tiny_host()
    processors = dict(host.unet.attn_processors)

    def fail(_):
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        train(trainer(host), on_step=fail, checkpoint=lambda _: 1 / 0)
    assert host.unet.attn_processors == processors
    assert not host.unet.is_gradient_checkpointing


def test_same_seed_same_curve():
    one, two, other = trainer(steps=3), trainer(steps=3), trainer(steps=3, seed=1)
    for run in (one, two, other):
        train(run)
    assert one.history == two.history != other.history


@pytest.mark.parametrize("stages", ["fixed", "iou"])
def test_interrupt_and_resume_gives_the_same_curve(tmp_path, stages):
    wanted = {"steps": 6, "stages": stages, "warmup": 2, "photos": 2}
    whole = trainer(**wanted)
    end = train(whole)

    class Stopped(Exception):
        pass

    def stop_at_three(report):
        if report.step == 3 and not report.warmup:
            raise Stopped

    path = tmp_path / "state.safetensors"
    first = trainer(**wanted)
    with pytest.raises(Stopped):
        train(first, on_step=stop_at_three, checkpoint=lambda t: save_state(t, path))
    second = trainer(**wanted)
    load_state(second, path)
    assert second.step == 3
    resumed = train(second)
    assert second.history == whole.history
    for a, b in zip(resumed.mapper.parameters(), end.mapper.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resume_with_other_settings_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    run = trainer(steps=1)
    train(run)
    save_state(run, path)
    with pytest.raises(LikenessError, match=r"learning_rate 0.001 then, 0.007 now.*switch resume off.*another name"):
        load_state(trainer(steps=1, learning_rate=7e-3), path)
    with pytest.raises(LikenessError, match="seed 0 then, 5 now"):
        load_state(trainer(steps=1, seed=5), path)
    with pytest.raises(LikenessError, match="other pictures"):
        load_state(trainer(steps=1, photos=2), path)
    other = trainer(steps=1)
    other.photos = [photo(7)]
    with pytest.raises(LikenessError, match="other pictures"):
        load_state(other, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LikenessError, match="resume"):
        load_state(trainer(steps=1), path)


def test_request_round_trip():
    request = config(tandem=TandemConfig.literal(), templates=("x {}",), stages="iou")
    assert PersonaTraining.from_dict(request.to_dict()) == request


def test_batch_gradient_is_the_mean_of_single_samples():
    run = trainer(batch=3, photos=3, residual_dropout=0.0, tandem=TandemConfig(weight=0.01))
    batch = run.batch(0, (400, 800))
    with run.host.open() as denoise:
        sum(run.losses(denoise, batch).values()).backward()
        joined = [p.grad.clone() for p in run.mapper.parameters()]
        run.mapper.zero_grad()
        for i in range(3):
            one = replace(
                batch,
                photos=[batch.photos[i]],
                timesteps=batch.timesteps[i : i + 1],
                noise=batch.noise[i : i + 1],
                layouts=[batch.layouts[i]],
                tandem=[batch.tandem[i]],
            )
            (sum(run.losses(denoise, one).values()) / 3).backward()
    for a, p in zip(joined, run.mapper.parameters(), strict=True):
        assert (a - p.grad).norm() < 0.01 * a.norm() + 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"checkpointing": True},
        {"tokens": 1, "combination": "concat"},
        {"image_width": 0},
        {"tandem": TandemConfig(weight=0)},
        {"supercategory": "very old cup", "subtokens": "first"},
        {"style": True},
    ],
)
def test_options_train(changes):
    run = trainer(steps=2, **changes)
    persona = train(run)
    assert all(map(torch.isfinite, map(torch.tensor, run.history)))
    assert persona.tokens == run.config.tokens


def test_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        run = trainer(checkpointing=on)
        with run.host.open(on) as denoise:
            sum(run.losses(denoise, run.batch(0, (400, 800))).values()).backward()
        gradients.append([p.grad for p in run.mapper.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_v_prediction_gives_noise():
    from support.persona_tiny import alphas

    from likeness.hosts.diffusers.persona import DiffusersDenoiser, SplitState

    class Velocity(torch.nn.Module):
        def forward(self, x, t, encoder_hidden_states):
            a = alphas()[t].view(-1, 1, 1, 1)
            return type("Out", (), {"sample": a.sqrt() * self.noise - (1 - a).sqrt() * self.clean})

    unet, t = Velocity(), torch.tensor([100, 900])
    unet.clean, unet.noise = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
    a = alphas()[t].view(-1, 1, 1, 1)
    noisy = a.sqrt() * unet.clean + (1 - a).sqrt() * unet.noise
    denoise = DiffusersDenoiser(unet, SplitState(), alphas(), "v_prediction")
    context = torch.zeros(2, 3, 4)
    assert torch.allclose(denoise(noisy, t, context, context), unet.noise, atol=1e-5)


# --- identity loss --------------------------------------------------------------------------------------------------


def identify(pixels, photos):
    return torch.nn.functional.normalize(pixels.mean(dim=(2, 3)), dim=1)


def test_identity_loss_decodes_only_where_it_helps():
    host, decoded = tiny_host(), []

    def decode(z):
        decoded.append(len(z))
        return torch.nn.functional.interpolate(z[:, :3] / 2 + 0.5, scale_factor=8)

    host = replace(host, decode_image=decode)
    face = replace(photo(), identity=torch.tensor([1.0, 0.0, 0.0]))
    run = PersonaTrainer(config(identity=1.0, identity_below=600, batch=8), host, [face], identify)
    batch = run.batch(0, (400, 800))
    clear = int((batch.timesteps < 600).sum())
    assert 0 < clear < 8
    with host.open() as denoise:
        terms = run.losses(denoise, batch)
        terms["identity"].backward()
    assert decoded == [clear]
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in run.mapper.parameters())


def test_identity_loss_needs_a_face():
    with pytest.raises(LikenessError, match="no face found"):
        PersonaTrainer(config(identity=1.0), tiny_host(), [photo()], identify)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PersonaTrainer(config(), tiny_host(), []),
        lambda: PersonaTrainer(config(), tiny_host(), [replace(photo(), mask=torch.zeros(1, 8, 8))]),
        lambda: PersonaTrainer(config(), tiny_host(), [photo(), photo(size=16)]),
        lambda: config(supercategory=" "),
        lambda: config(steps=0),
        lambda: config(stages="guess"),
        lambda: config(low=900, high=800),
        lambda: config(learning_rate=float("nan")),
    ],
)
def test_bad_input(make):
    with pytest.raises(LikenessError):
        make()


def test_nan_loss_stops_with_a_reason():
    with pytest.raises(LikenessError, match="loss at step 0"):
        train(PersonaTrainer(config(), tiny_host(), [replace(photo(), latent=torch.full((4, 8, 8), float("nan")))]))


def test_preview_runs_on_a_closed_host():
    seen = []
    run = trainer(steps=5)

    def preview(current):
        personas = {"S*": current.persona()}
        made = current.host.sample(torch.randn(1, 4, 8, 8), "a photo of S*", personas=personas, steps=2)
        seen.append((current.step, made.shape))

    train(run, preview=preview, preview_every=2)
    assert seen == [(2, (1, 4, 8, 8)), (4, (1, 4, 8, 8))]
