"""Persona Train with face models: the identity loss through the host's VAE, and masks made from faces."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from likeness_pack.nodes.face_nodes import FaceModels as FaceModelsNode
from support.comfy import tiny

from lab.people import draw_person
from likeness.core.errors import LikenessError
from likeness.faces import facenet
from likeness.faces.interface import Face, FaceModels
from likeness.hosts.comfy.faces import models as faces
from likeness.hosts.comfy.persona import photos as persona_masks
from likeness.hosts.comfy.persona.photos import encode_photos, fit_all, with_identity
from likeness.hosts.comfy.persona.train import Learned, TrainOptions, learn
from likeness.hosts.comfy.persona.training_host import Judges, training_host
from likeness.training.persona.request import PersonaTraining
from likeness.training.persona.trainer import PersonaTrainer

SIDE = 128
#: All steps below timestep 600, where estimates are decoded.
STEPS = {"low": 100, "high": 500}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A models folder of the test's own."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "personas", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """A drawn person, ``1 3 H W``."""
    return draw_person(1, SIDE).image[None]


@pytest.fixture(scope="module")
def drawn() -> FaceModels:
    """The miniature's face models, made as the host runs nodes."""
    with torch.inference_mode():
        return FaceModelsNode.execute(faces.MINIATURE).args[0]


def learnt(parts, picture, asked: PersonaTraining, masks="all", supercategory="man", faces=None) -> Learned:
    masks = torch.ones(1, 1, 8, 8) if isinstance(masks, str) else masks
    options = TrainOptions(asked, name="ada", resume=False, side=SIDE, faces=faces)
    return learn(parts.model, parts.clip, parts.vae, picture, masks, supercategory, options)


def request(**changes) -> PersonaTraining:
    return PersonaTraining(
        **{"steps": 3, "learning_rate": 1e-3, "supercategory": "man", "batch": 1, **STEPS, **changes}
    )


def test_three_steps_with_identity_leave_the_vae_as_it_was(parts, picture, drawn):
    before = copy.deepcopy(dict(parts.vae.first_stage_model.state_dict()))
    with torch.inference_mode():
        out = learnt(parts, picture, request(identity=1.0), faces=drawn)
    assert out.persona.training["done"] == 3 and out.persona.training["identity"] == 1.0
    assert all(torch.isfinite(p).all() for p in out.persona.mapper.parameters())
    for name, value in parts.vae.first_stage_model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.isfinite(parts.vae.decode(torch.zeros(1, 4, 8, 8))).all()


@pytest.mark.parametrize("changes", [{}, {"checkpointing": True}, {"precision": "bf16"}])
def test_gradient_comes_through_the_decoder(parts, picture, drawn, changes):
    asked = request(identity=1.0, **changes)
    pictures = fit_all(picture, SIDE, False)
    photos = encode_photos(parts.model, parts.vae, None, pictures, torch.ones(1, 1, SIDE, SIDE))
    photos, identify = with_identity(drawn, photos, pictures)
    asked = replace(asked, image_width=photos[0].image.numel())
    host = training_host(parts.model, parts.clip, asked, SIDE, Judges(parts.vae, identify.embedder.model))
    trainer = PersonaTrainer(asked, host, photos, identify)
    with host.open() as denoise, torch.autocast("cpu", torch.bfloat16, enabled=asked.precision == "bf16"):
        terms = trainer.losses(denoise, trainer.batch(0, (100, 500)))
    assert 0 < terms["identity"].item() < 2
    terms["identity"].backward()
    gradients = [p.grad for p in trainer.mapper.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients) and any(g.abs().max() > 0 for g in gradients)
    assert all(p.grad is None for p in parts.vae.first_stage_model.parameters())


def kl_vae():
    """The host's VAE round its own autoencoder of Stable Diffusion, narrow, with random weights."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    torch.manual_seed(0)
    shape = {
        "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    net = AutoencoderKL(ddconfig=shape, embed_dim=4).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter.data, std=0.1)
    vae = tiny.vae()
    vae.first_stage_model = net.requires_grad_(False).to(vae.vae_dtype)
    vae.patcher = type(vae.patcher)(net, vae.patcher.load_device, vae.patcher.offload_device)
    return vae


@pytest.mark.parametrize("checkpointing", [False, True])
def test_decoder_equals_the_hosts_decoding(parts, checkpointing):
    """Pictures as VAE Decode gives them, and the gradient of finite differences; the encoder is not copied."""
    with torch.inference_mode():
        vae = kl_vae()
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        unscaled = parts.model.model.process_latent_out(latents)
        theirs = vae.decode(unscaled).movedim(-1, 1)
    asked = request(checkpointing=checkpointing)
    host = training_host(parts.model, parts.clip, asked, 64, Judges(vae, torch.nn.Identity()))
    assert not any(True for _ in host.decoder.net.encoder.parameters())
    point = latents.clone().requires_grad_()
    with host.open():
        pictures = host.decode_image(point)
        assert torch.allclose(pictures, theirs.clone().float(), atol=2e-2 if vae.vae_dtype != torch.float32 else 1e-4)
        (slope,) = torch.autograd.grad(pictures.square().mean(), point)
        step = 1e-2 * slope / slope.norm()
        with torch.no_grad():
            rise = [host.decode_image(latents.clone() + sign * step).square().mean() for sign in (1, -1)]
    assert slope.abs().max() > 0
    assert ((rise[0] - rise[1]) / 2e-2).item() == pytest.approx(slope.norm().item(), rel=0.05)


def test_no_vae_is_said(parts):
    host = training_host(parts.model, parts.clip, request(), 64)
    with pytest.raises(LikenessError, match="no VAE"):
        host.decode_image(torch.zeros(1, 4, 8, 8))


def test_identity_without_face_models_or_faces(parts, picture, drawn):
    with pytest.raises(LikenessError, match="Connect Face Models"):
        learnt(parts, picture, request(identity=1.0))
    with pytest.raises(LikenessError, match="no face found"):
        learnt(parts, torch.full((1, 3, 64, 64), 0.5), request(identity=1.0), faces=drawn)


# --- masks


def finder(box=(30.0, 20.0, 70.0, 70.0)) -> FaceModels:
    """Face models that find a large and a small face, or none."""
    found = [] if box is None else [Face((0.0, 0.0, 9.0, 9.0), 0.99), Face(box, 0.9)]
    return FaceModels("finder", SimpleNamespace(name="finder", detect=lambda images: [found] * len(images)), None)


def test_connected_faces_make_the_mask(parts, picture, drawn):
    assert learnt(parts, picture, request(steps=1), None, "cup", drawn).persona
    (mask,) = persona_masks.masks_for(torch.rand(1, 3, 90, 100), None, "cup", finder())
    assert mask.shape == (1, 90, 100) and mask[0, 45, 50] == 1 and mask[0, 4, 4] == 0
    with pytest.raises(LikenessError, match="finds no face"):
        persona_masks.masks_for(torch.rand(1, 3, 90, 100), None, "face", finder(None))


def test_facenet_serves_words_for_people_if_it_is_installed(monkeypatch):
    pictures = torch.rand(1, 3, 90, 100)
    monkeypatch.setattr(faces, "load", lambda choice: finder())
    monkeypatch.setattr(facenet, "installed", lambda: True)
    assert persona_masks.masks_for(pictures, None, "young woman", None)[0].sum() > 0
    for word, there in (("cup", True), ("woman", False)):
        monkeypatch.setattr(facenet, "installed", lambda there=there: there)
        with pytest.raises(LikenessError, match=r"connect Face Models.*clipseg"):
            persona_masks.masks_for(pictures, None, word, None)


def test_facenet_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, facenet.PACKAGE, None)
    with pytest.raises(LikenessError, match=r"facenet-pytorch==2\.5\.3"):
        FaceModelsNode.execute(faces.FACENET)


def test_weights_are_looked_for_where_the_user_keeps_them(folder, monkeypatch):
    import folder_paths

    assert faces.facenet_weights() == folder / "facenet" / facenet.WEIGHTS
    other = folder / "elsewhere"
    other.mkdir()
    (other / facenet.WEIGHTS).touch()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "facenet", ([str(other)], set()))
    assert faces.facenet_weights() == other / facenet.WEIGHTS
