"""Persona files: round trip, atomic writes, wrong files, and the import of foreign pickles."""

from __future__ import annotations

import os
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from support.persona_tiny import clip_text, ddim_timesteps, tiny_host, tiny_text, trainer

from likeness.core.errors import LikenessError
from likeness.core.persona.mapper import Mapper, MapperConfig
from likeness.core.persona.persona import persona_description, persona_from, persona_tensors
from likeness.formats import files
from likeness.formats.persona import load_description, load_persona, save_persona
from likeness.formats.persona_import import import_mapper
from likeness.hosts.diffusers.persona import persona_contexts
from likeness.training.persona.trainer import train


@pytest.fixture(scope="module")
def persona():
    return train(trainer(steps=2, stages="iou", warmup=2, low=350, high=750), name="ada")


def test_round_trip(persona, tmp_path):
    path = save_persona(persona, tmp_path / "sub" / "ada")
    assert path.name == "ada.safetensors" and os.listdir(path.parent) == ["ada.safetensors"]
    again = load_persona(path)
    assert again.stages == persona.stages and again.supercategory == "face" and again.name == "ada"
    host = tiny_host()
    t = ddim_timesteps(10)
    one, two = (persona_contexts(host, "S* in snow", {"S*": p}, t) for p in (persona, again))
    assert torch.equal(one.dynamic.key, two.dynamic.key) and torch.equal(one.dynamic.value, two.dynamic.value)
    description = load_description(path)
    assert description["format"] == 1 and description["training"]["steps"] == 2
    assert description["base"] == {"family": "tiny", "text_widths": [32]}


def test_played_picture_survives_the_file(persona, tmp_path):
    again = load_persona(save_persona(persona, tmp_path / "p"))
    host, noise = tiny_host(), torch.randn(1, 4, 8, 8)
    pictures = [host.sample(noise, "S*", personas={"S*": p}, steps=4, scale=8.0) for p in (persona, again)]
    assert torch.equal(*pictures)


def test_wrong_base_model(persona):
    host = replace(tiny_host(), text=clip_text(tiny_text(width=64)))
    with pytest.raises(LikenessError, match="widths"):
        persona_contexts(host, "S*", {"S*": persona}, [500])


def test_drift_tells_another_text_encoder(persona):
    host = tiny_host()
    row = persona.mapper.supercategory
    assert persona.drift(row) == pytest.approx(1.0)
    assert persona.drift(torch.roll(row, 1)) < 0.9
    assert host.text.widths == persona.mapper.config.widths


def test_full_disk_loses_nothing(persona, tmp_path, monkeypatch):
    path = save_persona(persona, tmp_path / "p")
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(LikenessError, match="No space left"):
        save_persona(replace(persona, name="other"), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["p.safetensors"]


def test_damaged_and_foreign_files(persona, tmp_path):
    path = save_persona(persona, tmp_path / "p")
    data = path.read_bytes()
    for size in (4, 200, len(data) - 100):
        path.write_bytes(data[:size])
        with pytest.raises(LikenessError):
            load_persona(path)
    save_file({"x": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(LikenessError, match="persona"):
        load_persona(tmp_path / "lora.safetensors")
    with pytest.raises(LikenessError, match="expected a file"):
        load_persona(tmp_path / "none.safetensors")


def test_newer_format_is_named(persona, tmp_path, monkeypatch):
    from likeness.core.persona import persona as module

    monkeypatch.setattr(module, "FORMAT_VERSION", 99)
    path = save_persona(persona, tmp_path / "p")
    monkeypatch.setattr(module, "FORMAT_VERSION", 1)
    with pytest.raises(LikenessError, match="Update this pack"):
        load_persona(path)


@pytest.mark.parametrize(
    ("tensors", "changes", "words"),
    [
        ({"mapper.head.bias": float("nan")}, {}, "not finite in mapper.head.bias"),
        ({"image": float("inf")}, {}, "not finite in image"),
        ({}, {"format": "one"}, "format 'one'"),
        ({}, {"format": None}, "format None"),
        ({}, {"mapper": {"frequencies": "many"}}, "frequencies: got 'many'"),
        ({}, {"mapper": {"frequencies": 0}}, "frequencies: got 0"),
        ({}, {"mapper": {"tokens": 10**12}}, "tokens"),
        ({}, {"mapper": {"image_width": 7}}, "do not fit"),
        ({}, {"mapper": "none"}, "mapper 'none'"),
        ({}, {"stages": {"low": "a", "high": 3}}, "do not fit"),
        ({}, {"supercategory": 3}, "supercategory 3"),
        ({}, {"base": []}, "base"),
    ],
)
def test_damaged_contents_are_named(persona, tensors, changes, words):
    """NaN, wrong types and impossible sizes: an error of one form, nothing allocated for them."""
    given, told = persona_tensors(persona), persona_description(persona)
    for name, value in tensors.items():
        given[name] = torch.full_like(given[name], value)
    for name, value in changes.items():
        told[name] = {**told[name], **value} if isinstance(value, dict) else value
    with pytest.raises(LikenessError, match=words):
        persona_from(given, told)
    with pytest.raises(LikenessError, match="kind"):
        persona_from(given, [])


# --- the authors' files ---------------------------------------------------------------------------------------------


class Encoder(torch.nn.Module):
    """Stands for a class of foreign code in the pickle."""

    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.randn(5))


Encoder.__module__ = "models.positional_encoding"


def authors_state(mapper: Mapper) -> dict:
    names = {
        "input_layer.": "input_layer.",
        "trunk.": "timestep_proj.",
        "head.": "output_layer.0.",
        "residual_trunk.": "image_proj.",
        "residual_head.": "image_output_layer.0.",
    }
    state = {}
    for key, value in mapper.state_dict().items():
        for ours, theirs in names.items():
            if key.startswith(ours):
                state[theirs + key.removeprefix(ours)] = value
    return state


@pytest.fixture
def authors_file(tmp_path, monkeypatch):
    import sys
    import types

    module = types.ModuleType("models.positional_encoding")
    module.Encoder = Encoder
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    monkeypatch.setitem(sys.modules, "models.positional_encoding", module)
    mapper = Mapper(MapperConfig((32,), image_width=16), torch.randn(32))
    content = {"state_dict": authors_state(mapper), "cfg": {"model": {"target_norm": 0.4}}, "encoder": Encoder()}
    torch.save(content, tmp_path / "mapper-steps-1000.pt")
    torch.save({"<new1>": mapper.supercategory}, tmp_path / "learned_embeds-steps-1000.bin")
    return tmp_path / "mapper-steps-1000.pt", mapper


def test_import_of_the_authors_file(authors_file, monkeypatch):
    import sys

    path, mapper = authors_file
    monkeypatch.delitem(sys.modules, "models.positional_encoding")
    image, t = torch.randn(1, 16), torch.tensor([400, 633])
    persona = import_mapper(path, image=image)
    assert "models.positional_encoding" not in sys.modules
    ours, theirs = persona.mapper(t, image), mapper(t, image)
    assert torch.equal(ours.words, theirs.words) and torch.equal(ours.residual, theirs.residual)
    assert torch.equal(load_persona(path).mapper(t).words, theirs.words), "the word comes from the file beside it"


def test_import_without_the_word(authors_file):
    path, _ = authors_file
    path.with_name("learned_embeds-steps-1000.bin").unlink()
    with pytest.raises(LikenessError, match="word"):
        import_mapper(path)


class Hostile:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("call", [os.system, eval, __import__, os.getenv, pickle.loads, zipfile.ZipFile])
def test_hostile_pickle_is_refused_and_runs_nothing(tmp_path, call):
    mark = tmp_path / "ran"
    argument = {os.system: f"touch {mark}", eval: f"open({str(mark)!r}, 'w')"}.get(call, "os")
    torch.save({"state_dict": {}, "encoder": Hostile(call, argument)}, tmp_path / "mapper-steps-1.pt")
    with pytest.raises(LikenessError, match="not run"):
        import_mapper(tmp_path / "mapper-steps-1.pt", torch.randn(32))
    assert not mark.exists()


def test_other_contents(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(LikenessError, match="other contents"):
        import_mapper(tmp_path / "a.pt", torch.randn(32))
    (tmp_path / "b.pt").write_bytes(b"nothing")
    with pytest.raises(LikenessError, match="unreadable"):
        import_mapper(tmp_path / "b.pt", torch.randn(32))
