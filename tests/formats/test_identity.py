"""Public identity weights by synthetic files with the real key names: told apart, bound to a model, refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from likeness.core.blocks import UNetLayout
from likeness.core.errors import LikenessError
from likeness.core.magicid.encoder import EncoderShape, FaceFeatures, build_encoder
from likeness.formats import identity as forms

LAYOUT = UNetLayout.from_counts(((1,), (1,)), (1,), ((1,), (1,)))
WIDTHS = dict(zip(LAYOUT.blocks, (8, 16, 32, 16, 8), strict=True))
C = 12
RESAMPLER = {"inner": 16, "heads": 2, "depth": 2}
#: Per form: the encoder that its keys describe, and a file name that gives no hint where the keys tell alone.
CASES = {
    forms.FACEID: (EncoderShape("vector", C, 4, 6), "a.bin"),
    forms.PORTRAIT: (EncoderShape("vector", C, 16, 6), "a.bin"),
    forms.FACEID_PLUS: (EncoderShape("face", C, 4, 6, 10, heads=2, depth=2), "faceid-plus_sd15.bin"),
    forms.FACEID_PLUS_V2: (EncoderShape("face", C, 4, 6, 10, heads=2, depth=2), "faceid-plusv2_sd15.bin"),
    forms.PLUS_FACE: (EncoderShape("resampler", C, 16, picture_width=10, **RESAMPLER), "a.bin"),
    forms.FULL_FACE: (EncoderShape("picture", C, 0, picture_width=10), "a.bin"),
    forms.INSTANTID: (EncoderShape("resampler", C, 16, 512, **RESAMPLER), "ip-adapter.bin"),
    forms.PORTRAIT_UNNORM: (EncoderShape("resampler", C, 16, 512, **RESAMPLER), "faceid-portrait_sdxl_unnorm.bin"),
}


def contents(shape, lora=False):
    """``image_proj`` and ``ip_adapter`` as the public files have them: down, up, mid; odd: cross-attention."""
    torch.manual_seed(0)
    adapter = {}
    for n, width in enumerate((8, 16, 16, 8, 32)):  # the middle block comes last
        for kind in "kv":
            adapter[f"{2 * n + 1}.to_{kind}_ip.weight"] = torch.randn(width, C)
        if lora:
            adapter[f"{2 * n}.to_q_lora.down.weight"] = torch.randn(2, width)
            adapter[f"{2 * n}.to_q_lora.up.weight"] = torch.randn(width, 2)
    return {"image_proj": build_encoder(shape).state_dict(), "ip_adapter": adapter}


def written(tmp_path, shape, name, **more):
    torch.save(contents(shape, **more), tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("form", CASES)
def test_forms_are_told_by_keys_and_else_by_name(tmp_path, form):
    shape, name = CASES[form]
    loaded = forms.load_identity_weights(written(tmp_path, shape, name))
    assert loaded.form == form
    face = FaceFeatures(torch.randn(2, shape.vector_width), torch.randn(2, 7, shape.picture_width))
    assert loaded.encoder(face).shape == (2, shape.tokens or 7, C)
    assert loaded.encoder.shape.shortcut == (form == forms.FACEID_PLUS_V2)


def test_safetensors_are_read_as_the_bin(tmp_path):
    shape, _ = CASES[forms.FACEID]
    nested = contents(shape)
    save_file(
        {f"{a}.{b}": t.clone() for a, inner in nested.items() for b, t in inner.items()}, tmp_path / "a.safetensors"
    )
    loaded = forms.load_identity_weights(tmp_path / "a.safetensors")
    assert torch.equal(loaded.layers[4][0], nested["ip_adapter"]["9.to_k_ip.weight"])


def test_the_users_choice_where_keys_cannot_tell(tmp_path):
    path = written(tmp_path, *CASES[forms.FACEID_PLUS_V2])
    assert forms.load_identity_weights(path, forms.FACEID_PLUS).form == forms.FACEID_PLUS
    with pytest.raises(LikenessError, match="form"):
        forms.load_identity_weights(path, forms.INSTANTID)


def test_layers_go_to_their_blocks_the_middle_last(tmp_path):
    loaded = forms.load_identity_weights(written(tmp_path, *CASES[forms.FACEID], lora=True))
    attention = loaded.for_unet(WIDTHS, C)
    assert attention.blocks == LAYOUT.blocks
    middle = next(block for block in LAYOUT.blocks if block.section == "mid")
    assert torch.equal(attention.layer(middle).to_k.weight, loaded.layers[4][0])
    assert len(loaded.lora) == 10


@pytest.mark.parametrize("widths, context", [(WIDTHS, 13), (dict.fromkeys(LAYOUT.blocks, 8), C)])
def test_another_base_model(tmp_path, widths, context):
    loaded = forms.load_identity_weights(written(tmp_path, *CASES[forms.FACEID]))
    with pytest.raises(LikenessError, match="family"):
        loaded.for_unet(widths, context)


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


def test_files_that_are_none(tmp_path):
    with pytest.raises(LikenessError, match="no such file"):
        forms.load_identity_weights(tmp_path / "none.bin")
    torch.save({"image_proj": Hostile()}, tmp_path / "hostile.bin")
    with pytest.raises(LikenessError, match="Nothing in it was run"):
        forms.load_identity_weights(tmp_path / "hostile.bin")
    whole = written(tmp_path, *CASES[forms.FACEID])
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(LikenessError):
        forms.load_identity_weights(whole)


@pytest.mark.parametrize("spoil", ["image_proj", "ip_adapter"])
@pytest.mark.parametrize("extra", [True, False])
def test_keys_missing_or_left_over(tmp_path, spoil, extra):
    made = contents(CASES[forms.FACEID][0])
    if extra:
        made[spoil]["more.weight"] = torch.zeros(1)
    else:
        made[spoil].popitem()
    torch.save(made, tmp_path / "a.bin")
    with pytest.raises(LikenessError, match=r"a\.bin"):
        forms.load_identity_weights(tmp_path / "a.bin")
