"""Training a persona inside the real ComfyUI, and the persona nodes."""

from __future__ import annotations

import copy

import comfy.model_management as management
import pytest
import torch
from likeness_pack.nodes import persona_nodes
from support.comfy import tiny

from likeness.core.errors import LikenessError
from likeness.hosts.comfy.persona import files as persona_files
from likeness.hosts.comfy.persona import train as persona_learn
from likeness.hosts.comfy.persona.apply import apply
from likeness.hosts.comfy.persona.photos import encode_photos, fit_all
from likeness.hosts.comfy.persona.text import NamedPersona
from likeness.hosts.comfy.persona.train import Learned, TrainOptions, learn
from likeness.hosts.comfy.persona.training_host import training_host
from likeness.training.persona.request import PersonaTraining

SIDE = 64


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A models folder of the test's own."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "personas", raising=False)
    folder_paths.filename_list_cache.pop("personas", None)
    return tmp_path


def picture() -> torch.Tensor:
    return torch.rand(1, 3, 90, 80, generator=torch.Generator().manual_seed(0))


def box() -> torch.Tensor:
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 10:30, 10:30] = 1
    return mask


def learnt(parts, asked: PersonaTraining, pictures=None, masks="box", model=None, **options) -> Learned:
    """Persona Train's work on a picture of noise with a square mask."""
    pictures = picture() if pictures is None else pictures
    masks = box() if isinstance(masks, str) else masks
    options = TrainOptions(asked, **{"name": "ada", "side": SIDE, **options})
    return learn(model or parts.model, parts.clip, parts.vae, pictures, masks, "man", options)


def request(**changes) -> PersonaTraining:
    return PersonaTraining(**{"steps": 3, "learning_rate": 1e-3, "supercategory": "man", **changes})


def weights(parts) -> dict:
    unet, text = parts.model.model.diffusion_model, parts.clip.cond_stage_model
    return {**copy.deepcopy(dict(unet.state_dict())), **copy.deepcopy(dict(text.state_dict()))}


def test_training_in_inference_mode_leaves_model_and_clip_as_they_were(parts):
    before = weights(parts)
    flags = [p.requires_grad for p in parts.model.model.parameters()]
    forwards = [m.__dict__.get("forward") for m in parts.model.model.modules()]
    with torch.inference_mode():  # as the host runs nodes
        out = learnt(parts, request())
        assert torch.is_inference_mode_enabled()
    for name, value in weights(parts).items():
        assert torch.allclose(value, before[name], rtol=0, atol=0, equal_nan=True), name
    assert [p.requires_grad for p in parts.model.model.parameters()] == flags
    assert [m.__dict__.get("forward") for m in parts.model.model.modules()] == forwards
    assert not parts.model.model_options.get("transformer_options", {}).get("patches_replace")
    assert out.persona.training["done"] == 3 and out.persona.base["context_width"] == tiny.CONTEXT_WIDTH
    model, positive = apply(parts.model, parts.clip, (NamedPersona("S*", out.persona),), "a photo of S*")
    assert torch.isfinite(tiny.sample(model, positive, parts.negative, size=(8, 8), steps=4)).all()


def test_models_loaded_in_inference_mode_can_be_trained_on():
    """The host loads checkpoints inside inference mode: their weights cannot take part in autograd as they are."""
    with torch.inference_mode():
        model, clip, vae = tiny.model(), tiny.clip(), tiny.vae()
        assert next(model.model.diffusion_model.parameters()).is_inference()

        class Parts:
            pass

        parts = Parts()
        parts.model, parts.clip, parts.vae = model, clip, vae
        assert learnt(parts, request(checkpointing=True)).persona.training["done"] == 3


def test_loss_agrees_with_the_other_host(parts):
    """One training step on both hosts: same weights, photo and random choices; loss and gradient agree."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from likeness.hosts.comfy.persona.text import TokenizerAdapter
    from likeness.hosts.diffusers.persona import clip_text
    from likeness.hosts.diffusers.pipeline import Pipeline
    from likeness.training.persona.trainer import PersonaTrainer

    torch.manual_seed(1)
    encoder = CLIPTextModel(CLIPTextConfig(**tiny.TEXT)).eval()
    rounded = {k: v.half().float() if v.is_floating_point() else v for k, v in encoder.state_dict().items()}
    encoder.load_state_dict(rounded)
    other = Pipeline(tiny.diffusers_unet(), clip_text(encoder), TokenizerAdapter(parts.clip), lambda x: x, lambda x: x)
    photos = encode_photos(parts.model, parts.vae, None, fit_all(picture(), SIDE, False), fit_all(box(), SIDE, False))
    asked = request(image_width=photos[0].image.numel())
    results = []
    for host in (training_host(parts.model, parts.clip, asked, SIDE), other):
        trainer = PersonaTrainer(asked, host, photos)
        with host.open() as denoise:
            terms = trainer.losses(denoise, trainer.batch(0, (400, 800)))
            sum(terms.values()).backward()
        results.append((terms, [p.grad.clone() for p in trainer.mapper.parameters() if p.grad is not None]))
    (ours, gradient), (theirs, reference) = results
    for name in ours:
        assert ours[name].item() == pytest.approx(theirs[name].item(), rel=2e-3)
    flat, other_flat = (torch.cat([g.flatten() for g in gs]) for gs in (gradient, reference))
    assert (flat - other_flat).norm() < 0.02 * other_flat.norm()


def test_stages_from_attention_and_checkpointing(parts):
    out = learnt(parts, request(stages="iou", warmup=2, checkpointing=True))
    assert len(out.persona.training["iou"]["iou"]) == 50
    assert out.iou.shape[0] == 1 and out.iou.shape[-1] == 3


def test_interrupt_then_resume(parts, monkeypatch):
    whole = learnt(parts, request(steps=4), resume=False)

    tick = persona_learn.Progress.__call__

    def user_presses_cancel(self, report):
        management.interrupt_current_processing(report.step == 2)
        tick(self, report)

    with monkeypatch.context() as patch:
        patch.setattr(persona_learn.Progress, "__call__", user_presses_cancel)
        with pytest.raises(management.InterruptProcessingException):
            learnt(parts, request(steps=4))
    assert persona_files.state_path("ada").is_file()
    resumed = learnt(parts, request(steps=4))
    assert not persona_files.state_path("ada").is_file(), "a finished training leaves no unfinished state"
    for a, b in zip(whole.persona.mapper.parameters(), resumed.persona.mapper.parameters(), strict=True):
        assert torch.equal(a, b)


def test_previews_are_drawn_while_training(parts):
    out = learnt(parts, request(), preview_every=2)
    assert out.preview.shape == (1, SIDE, SIDE, 3)


def test_several_pictures_with_one_mask(parts):
    out = learnt(parts, request(), pictures=torch.rand(3, 3, 64, 64))
    assert out.persona.image.shape[0] == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"masks": torch.zeros(1, 1, 8, 8)}, "empty mask"),
        ({"masks": torch.ones(2, 1, 8, 8), "pictures": torch.rand(3, 3, 64, 64)}, "2 masks for 3"),
        ({"masks": None}, "clipseg"),
        ({"pictures": torch.rand(0, 3, 64, 64)}, "empty batch"),
    ],
)
def test_bad_masks(parts, changes, words):
    with pytest.raises(LikenessError, match=words):
        learnt(parts, request(), **changes)


def test_full_mask_is_allowed(parts):
    assert learnt(parts, request(steps=1), masks=torch.ones(1, 1, 8, 8)).persona is not None


def test_quantised_weights_are_refused(parts):
    model = tiny.model()
    block = model.model.diffusion_model.out[2]
    block.weight = torch.nn.Parameter(block.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(LikenessError, match="unquantised"):
        learnt(parts, request(), model=model)


# --- nodes ----------------------------------------------------------------------------------------------------------


def widgets(node, **changes) -> dict:
    defaults = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    for i in node.define_schema().inputs:
        if i.id not in defaults and getattr(i, "options", None):
            defaults[i.id] = i.options[0]
    return {**defaults, **changes}


def test_nodes_train_save_load_apply(parts):
    values = widgets(persona_nodes.PersonaTrainOptions, steps=2, size=SIDE, preview_every=1)
    image, mask = picture().movedim(1, -1), box()[0]
    with torch.inference_mode():
        options = persona_nodes.PersonaTrainOptions.execute(**values).args[0]
        out = persona_nodes.PersonaTrain.execute(
            parts.model, parts.clip, parts.vae, image, "man", "S*", mask, options=options
        )
        chain = out.args[0]
        saved = persona_nodes.PersonaSave.execute(chain, "ada", False)
        again = persona_nodes.PersonaSave.execute(chain, "ada", False)
        assert saved.args[0].endswith("ada.safetensors") and again.args[0].endswith("ada_2.safetensors")
        assert persona_files.list_personas() == ["ada.safetensors", "ada_2.safetensors"]
        assert persona_nodes.PersonaLoad.validate_inputs("ada.safetensors") is True
        assert persona_nodes.PersonaLoad.validate_inputs(None) is True, "the name comes from another node"
        assert "none.safetensors" in persona_nodes.PersonaLoad.validate_inputs("none.safetensors")
        loaded = persona_nodes.PersonaLoad.execute("ada.safetensors", "S2*", personas=chain)
        assert [p.placeholder for p in loaded.args[0]] == ["S*", "S2*"] and "stands for: man" in loaded.args[1]
        about, files, drawing = persona_nodes.PersonaInfo.execute(loaded.args[0]).args
        assert "S2*" in about and "ada_2" in files and drawing.shape[-1] == 3
        model, positive = persona_nodes.PersonaApply.execute(parts.model, parts.clip, loaded.args[0], "S* and S2*").args
        assert torch.isfinite(tiny.sample(model, positive, parts.negative, size=(8, 8))).all()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_bad_file_names(parts, name):
    persona = learnt(parts, request(steps=1)).persona
    with pytest.raises(LikenessError, match="name"):
        persona_files.save(persona, name, False)


def test_options_at_their_defaults_are_those_of_none():
    options = persona_nodes.PersonaTrainOptions.execute(**widgets(persona_nodes.PersonaTrainOptions)).args[0]
    assert options == TrainOptions()


def test_nodes_show_at_most_nine_inputs():
    shown = {n.__name__: len(n.define_schema().inputs) for n in persona_nodes.NODES}
    assert max(count for name, count in shown.items() if name != "PersonaTrainOptions") <= 9


@pytest.mark.parametrize(
    ("path", "word", "words"),
    [("", "man", "path: got an empty path"), ('"none.pt"', "man", "path: got 'none.pt', nothing there"),
     (".", "man", "folder"), ("{}", "", "supercategory: got ''"), ("{}", "man", "unreadable")],
)  # fmt: skip
def test_import_says_what_it_did_not_understand(parts, folder, path, word, words):
    (folder / "mapper.pt").write_bytes(b"nothing")
    quoted = path.format((folder / "mapper.pt").as_uri())
    with pytest.raises(LikenessError, match=f"Persona Import: .*{words}"):
        persona_nodes.PersonaImport.execute(parts.clip, quoted, word, "S*", 400, 800)


def test_empty_folder_lists_an_entry():
    assert persona_files.list_personas() == [persona_files.NONE]
    with pytest.raises(LikenessError):
        persona_files.load(persona_files.NONE)


def test_prompts_of_ones_own():
    assert persona_learn.prompt_lines(" a {} \n\nthe {}\n", "templates") == ("a {}", "the {}")
    for wrong in ("no slot", "{} and {}"):
        with pytest.raises(LikenessError, match="exactly once"):
            persona_learn.prompt_lines(wrong, "templates")
