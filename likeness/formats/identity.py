"""Public identity weights: the IP-Adapter FaceID family, plus-face, full-face and InstantID's adapter.

A file's form is told by its keys. Some forms have the same keys and shapes: there the user chooses, and the file's name
is only the default. A file is ``{"image_proj": ..., "ip_adapter": ...}``, as a ``.bin`` (read as tensors only, nothing
in it is run) or with these words as prefixes in a ``.safetensors``.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core.blocks import BlockId
from ..core.errors import LikenessError, bad_input
from ..core.magicid.encoder import EncoderShape, IdentityEncoder, build_encoder
from ..core.magicid.projections import IdentityAttention, public_order
from .magicid import load_magicid, part, read_description

AUTO = "auto"
FACEID, PORTRAIT, PORTRAIT_UNNORM = "FaceID", "FaceID-portrait", "FaceID-portrait-unnorm"
FACEID_PLUS, FACEID_PLUS_V2 = "FaceID-Plus", "FaceID-PlusV2"
PLUS_FACE, FULL_FACE, INSTANTID, MAGICID = "plus-face", "full-face", "InstantID", "MagicID"

#: Where an adapter's middle block stands among IP-Adapter's numbers, and its LoRA's names.
_LAYER = re.compile(r"(\d+)\.to_([kv])_ip\.weight")


@dataclass(frozen=True)
class Form:
    """What a form's encoder has to be given.

    Attributes:
        vector: ``"unit"`` or ``"raw"``, the recogniser's vector as it is fed; empty: none is taken.
        pack: the insightface pack it was trained with. aligned: whether CLIP sees the aligned crop of 224 pixels; the
            face's box otherwise.
        scale: the usual weight.
    """

    vector: str
    pack: str = "buffalo_l"
    aligned: bool = False
    scale: float = 1.0


FORMS: dict[str, Form] = {
    FACEID: Form("unit"),
    PORTRAIT: Form("unit"),
    PORTRAIT_UNNORM: Form("raw"),
    FACEID_PLUS: Form("unit", aligned=True),
    FACEID_PLUS_V2: Form("unit", aligned=True),
    PLUS_FACE: Form(""),
    FULL_FACE: Form(""),
    INSTANTID: Form("raw", pack="antelopev2", scale=0.8),
    MAGICID: Form("unit"),
}


@dataclass(frozen=True, eq=False)
class IdentityWeights:
    """Identity weights of any form.

    Attributes:
        name: the file's. form: key of :data:`FORMS`.
        encoder: makes ``F_id``.
        layers: per cross-attention its ``to_k`` and ``to_v``, ``width C``, in IP-Adapter's order; empty for our own.
        own: per place (``"unet"``, ``"control"``) the identity layers of our own form.
        control: our Identity ControlNet's state dict in diffusers' keys.
        lora: the LoRA inside FaceID files, ``N.to_q_lora.down.weight`` and so on; empty without one.
        embedder: of our own form, the face embedder it was trained with.
    """

    name: str
    form: str
    encoder: IdentityEncoder
    layers: tuple[tuple[Tensor, Tensor], ...] = ()
    own: Mapping[str, IdentityAttention] = field(default_factory=dict)
    control: Mapping[str, Tensor] = field(default_factory=dict)
    lora: Mapping[str, Tensor] = field(default_factory=dict)
    embedder: str = ""

    def for_unet(self, widths: Mapping[BlockId, int], context_width: int) -> IdentityAttention | None:
        """The identity layers of a UNet; None where these weights have none.

        Args:
            widths: of every cross-attention of the model. context_width: of its text.

        Raises:
            LikenessError: the weights were made for another base model.
        """
        if self.encoder.shape.width != context_width:
            raise self._other_base(f"text of {context_width} channels", f"{self.encoder.shape.width}")
        if not self.layers:
            layers = self.own.get("unet")
            if layers is not None and any(widths.get(block) != width for block, width in layers.widths.items()):
                raise self._other_base("other cross-attentions", "those it was trained with")
            return layers
        order = public_order(widths)
        if [widths[block] for block in order] != [k.shape[0] for k, _ in self.layers]:
            raise self._other_base(f"{len(order)} cross-attentions", f"{len(self.layers)} of other widths")
        placed = dict(zip(order, self.layers, strict=True))
        with torch.device("meta"):
            attention = IdentityAttention({block: widths[block] for block in sorted_like(widths)}, context_width)
        for block in attention.blocks:
            k, v = placed[block]
            layer = attention.layer(block)
            layer.to_k.weight, layer.to_v.weight = (nn.Parameter(x, requires_grad=False) for x in (k, v))
        return attention

    def _other_base(self, came: str, expected: str) -> LikenessError:
        return bad_input(
            f"Identity weights {self.name}", f"a model with {came}", f"{expected}, as these weights were made for",
            "Use the file for this model's family (SD1.5 and SDXL differ).",
        )  # fmt: skip


def sorted_like(widths: Mapping[BlockId, int]) -> list[BlockId]:
    """The blocks in the order of the mapping, which is execution order."""
    return list(widths)


def load_identity_weights(path: str | Path, form: str = AUTO) -> IdentityWeights:
    """Read identity weights of any form, ours included.

    Args:
        form: key of :data:`FORMS`, or ``"auto"``: by the keys, and by the file's name where keys cannot tell.

    Raises:
        LikenessError: no such file, one that cannot be read or asks for more than tensors, weights of an unknown form
            or of another than the chosen one, or keys missing or left over.
    """
    path = Path(path)
    if not path.is_file():
        raise bad_input(f"Identity weights {path.name}", "no such file", "an existing one", "Check name and folder.")
    if path.suffix == ".safetensors" and _is_own(path):
        mine = load_magicid(path)
        return IdentityWeights(
            path.name, MAGICID, mine.encoder, (), mine.attention, mine.control, {}, mine.embedder
        )  # fmt: skip
    projection, adapter = _read(path)
    chosen = _choose(tell(projection, path.name), form, path)
    encoder = build_encoder(_shape(projection, chosen, path.name))
    try:
        encoder.load_state_dict(projection, strict=True, assign=True)
    except RuntimeError as cause:
        raise _unknown(path.name, f"an encoder of {chosen} with other weights ({cause})") from cause
    layers, lora = _adapter(adapter, path.name)
    return IdentityWeights(path.name, chosen, encoder.requires_grad_(False).eval(), layers, lora=lora)


def _is_own(path: Path) -> bool:
    try:
        return read_description(path) is not None
    except (SafetensorError, OSError, ValueError):
        return False  # the reading that follows says what is wrong


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``image_proj`` and ``ip_adapter`` of a file."""
    try:
        if path.suffix == ".safetensors":
            flat = load_file(path)
        else:
            flat = _flatten(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as cause:
        raise bad_input(
            f"Identity weights {path.name}", "a file that is broken or asks for more than tensors",
            "plain weights", "Get it again from its maker, if there is one as .safetensors. Nothing in it was run.",
        ) from cause  # fmt: skip
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, KeyError) as cause:
        raise bad_input(
            f"Identity weights {path.name}", f"a file that cannot be read ({cause})", "a whole file", "Copy it again."
        ) from cause
    adapter = part(flat, "ip_adapter.") or part(flat, "adapter_modules.")
    projection = part(flat, "image_proj.")
    if not adapter or not projection:
        raise _unknown(path.name, f"keys such as {', '.join(sorted(flat)[:3]) or 'none'}")
    return projection, adapter


def _flatten(nested: object, prefix: str = "") -> dict[str, Tensor]:
    if isinstance(nested, Tensor):
        return {prefix.removesuffix("."): nested}
    if not isinstance(nested, Mapping):
        raise ValueError(f"{prefix or 'the file'} holds a {type(nested).__name__}")
    return {key: value for name, inner in nested.items() for key, value in _flatten(inner, f"{prefix}{name}.").items()}


def tell(projection: Mapping[str, Tensor], name: str) -> tuple[str, ...]:
    """The forms that an ``image_proj`` may be, the likeliest by the file's name first.

    Raises:
        LikenessError: none that is known.
    """
    low = name.lower()
    if "perceiver_resampler.proj_in.weight" in projection:
        return _preferred((FACEID_PLUS_V2, FACEID_PLUS), "v2" in low or "sdxl" in low)
    if "latents" in projection and "proj_in.weight" in projection:
        if projection["proj_in.weight"].shape[1] != 512:
            return (PLUS_FACE,)
        return _preferred((PORTRAIT_UNNORM, INSTANTID), "portrait" in low)
    if "proj.3.weight" in projection:
        return (FULL_FACE,)
    if "proj.2.weight" in projection and "norm.weight" in projection:
        tokens = projection["proj.2.weight"].shape[0] // projection["norm.weight"].shape[0]
        return (FACEID,) if tokens == 4 else (PORTRAIT,)
    raise _unknown(name, f"an encoder with {', '.join(sorted(projection)[:3])}")


def _preferred(forms: tuple[str, str], first: bool) -> tuple[str, ...]:
    return forms if first else forms[::-1]


def _choose(possible: tuple[str, ...], form: str, path: Path) -> str:
    if form == AUTO:
        return possible[0]
    if form not in possible:
        raise bad_input(
            f"Identity weights {path.name}: form", form, " or ".join(possible), "Choose auto, or another file."
        )
    return form


def _unknown(name: str, came: str) -> LikenessError:
    known = ", ".join(FORMS)
    return bad_input(f"Identity weights {name}", came, f"one of these forms: {known}", "Pick another file.")


def _shape(projection: Mapping[str, Tensor], form: str, name: str) -> EncoderShape:
    """The encoder's structure by its tensors."""
    try:
        if form in (FACEID, PORTRAIT):
            return _vector_shape(projection, "vector")
        if form in (FACEID_PLUS, FACEID_PLUS_V2):
            return _vector_shape(projection, "face", form == FACEID_PLUS_V2)
        if form == FULL_FACE:
            width, picture = projection["proj.2.weight"].shape
            return EncoderShape("picture", width, 0, picture_width=picture)
        inner, source = projection["proj_in.weight"].shape
        takes = {"picture_width": source} if form == PLUS_FACE else {"vector_width": source}
        return EncoderShape(
            "resampler", projection["proj_out.weight"].shape[0], projection["latents"].shape[1], inner=inner,
            **takes, **_attention(projection, "layers."),
        )  # fmt: skip
    except (KeyError, ValueError) as cause:
        raise _unknown(name, f"an encoder of {form} without {cause}") from cause


def _vector_shape(projection: Mapping[str, Tensor], kind: str, shortcut: bool = False) -> EncoderShape:
    width, vector = projection["norm.weight"].shape[0], projection["proj.0.weight"].shape[1]
    tokens = projection["proj.2.weight"].shape[0] // width
    if kind == "vector":
        return EncoderShape(kind, width, tokens, vector)
    picture = projection["perceiver_resampler.proj_in.weight"].shape[1]
    attention = _attention(projection, "perceiver_resampler.layers.")
    return EncoderShape(kind, width, tokens, vector, picture, shortcut=shortcut, **attention)


def _attention(projection: Mapping[str, Tensor], prefix: str) -> dict[str, int]:
    depth = len({key.removeprefix(prefix).split(".")[0] for key in projection if key.startswith(prefix)})
    return {"depth": depth, "heads": projection[f"{prefix}0.0.to_q.weight"].shape[0] // 64}


def _adapter(adapter: Mapping[str, Tensor], name: str) -> tuple[tuple[tuple[Tensor, Tensor], ...], dict[str, Tensor]]:
    """The layers in order of their numbers 1, 3, 5 ..., and the LoRA."""
    found: dict[int, dict[str, Tensor]] = {}
    lora = {}
    for key, value in adapter.items():
        match = _LAYER.fullmatch(key)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = value
        elif "_lora." in key:
            lora[key] = value
        else:
            raise _unknown(name, f"an adapter with a weight '{key}'")
    numbers = sorted(found)
    if numbers != list(range(1, 2 * len(numbers), 2)) or any(len(pair) != 2 for pair in found.values()):
        raise _unknown(name, "an adapter with missing layers")
    return tuple((found[n]["k"], found[n]["v"]) for n in numbers), lora
