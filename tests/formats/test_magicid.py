"""Our own identity weights on disk."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from likeness.core.blocks import BlockId
from likeness.core.errors import LikenessError
from likeness.core.magicid.encoder import EncoderShape, FaceFeatures, build_encoder
from likeness.core.magicid.projections import IdentityAttention
from likeness.formats.magicid import METADATA_KEY, MagicIdWeights, load_magicid, save_magicid

BLOCKS = {BlockId("down", 0): 8, BlockId("mid", 0): 16}


def some_weights() -> MagicIdWeights:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderShape("face", 12, 4, 6, 10, heads=2, head_width=8, depth=1))
    attention = {place: IdentityAttention(BLOCKS, 12) for place in ("unet", "control")}
    control = {"conv_in.weight": torch.randn(4, 4, 3, 3)}
    return MagicIdWeights(encoder, attention, control, "drawn", ("landmarks",), 12, {"data": "drawn people"})


def test_a_file_gives_back_what_was_saved(tmp_path):
    weights = some_weights()
    path = save_magicid(weights, tmp_path / "mine")
    assert path.name == "mine.safetensors"
    back = load_magicid(path)
    face = FaceFeatures(torch.randn(2, 6), torch.randn(2, 5, 10))
    assert torch.equal(back.encoder(face), weights.encoder(face))
    for place in ("unet", "control"):
        assert back.attention[place].widths == BLOCKS
        for name, value in weights.attention[place].state_dict().items():
            assert torch.equal(back.attention[place].state_dict()[name], value)
    assert torch.equal(back.control["conv_in.weight"], weights.control["conv_in.weight"])
    assert (back.embedder, back.modes, back.steps, back.notes) == ("drawn", ("landmarks",), 12, weights.notes)


def test_names_in_the_file(tmp_path):
    names = set(load_file(save_magicid(some_weights(), tmp_path / "mine")))
    assert {"id_attn.unet.down0_0_0.to_k.weight", "id_attn.control.mid_0_0.to_v.weight"} <= names
    assert {"resampler.proj.0.weight", "control.conv_in.weight"} <= names


def test_half_precision_on_disk(tmp_path):
    back = load_magicid(save_magicid(some_weights(), tmp_path / "mine", torch.float16))
    assert next(back.encoder.parameters()).dtype == torch.float16
    assert not next(back.encoder.parameters()).requires_grad


def spoil(path, change):
    """Rewrite the file with its tensors and description changed."""
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()[METADATA_KEY])
    change(tensors, told)
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(told)})
    return path


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t, d: d.update(version=99), "version 99"),
        (lambda t, d: d.update(kind="persona"), "another form"),
        (lambda t, d: t.pop("resampler.norm.weight"), "norm.weight"),
        (lambda t, d: t.update({"resampler.more": torch.zeros(1)}), "more"),
        (lambda t, d: d["encoder"].update(tokens=7), "size mismatch"),
        (lambda t, d: d["attention"]["unet"].update(nowhere_0_0=8), "cannot be read"),
        (lambda t, d: d.pop("encoder"), "encoder"),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, words):
    path = spoil(save_magicid(some_weights(), tmp_path / "mine"), change)
    with pytest.raises(LikenessError, match=words):
        load_magicid(path)


def test_missing_and_truncated(tmp_path):
    with pytest.raises(LikenessError, match="no such file"):
        load_magicid(tmp_path / "none.safetensors")
    path = save_magicid(some_weights(), tmp_path / "mine")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LikenessError, match="cannot be read"):
        load_magicid(path)
