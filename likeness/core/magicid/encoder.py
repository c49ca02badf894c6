"""Identity encoders: what is known of a face -> ``F_id``, a few tokens as wide as the text context.

The paper's encoder (CLIP-Vision global, ArcFace local, a resampler) is :class:`FaceResampler`, which is also the form
of IP-Adapter's FaceID-Plus and PlusV2; the others are the forms that public identity weights come in. Parameters are
named as in those files, so that a state dict loads as it is.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import merge_heads, split_heads
from ..errors import bad_input


@dataclass(frozen=True)
class FaceFeatures:
    """What an encoder is told of faces.

    Attributes:
        vector: ``B E``, the face recogniser's vector (ArcFace); None where the encoder takes none.
        picture: ``B P W``, a picture encoder's tokens of the face crop (CLIP-Vision); None likewise.
    """

    vector: Tensor | None = None
    picture: Tensor | None = None


@dataclass(frozen=True)
class EncoderShape:
    """Everything that tells an encoder's structure; it travels as JSON beside our own weights.

    Attributes:
        kind: key of :data:`ENCODERS`.
        width: C, of the text context.
        tokens: of one face (``"picture"``: as many as the picture has).
        vector_width: E of the recogniser's vector, 0 without one.
        picture_width: W of the picture's tokens, 0 without them.
        inner: width of the resampler; ``"face"`` works in C.
        heads, head_width, depth: of the resampler's attention, and its layers.
        shortcut: ``"face"`` only: whether the vector's own tokens are added to the resampler's (FaceID-PlusV2).
    """

    kind: str
    width: int
    tokens: int
    vector_width: int = 0
    picture_width: int = 0
    inner: int = 0
    heads: int = 0
    head_width: int = 64
    depth: int = 4
    shortcut: bool = False

    def as_json(self) -> dict:
        """A dictionary of plain values."""
        return dataclasses.asdict(self)


class IdentityEncoder(nn.Module, ABC):
    """Turns :class:`FaceFeatures` into ``F_id``."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def forward(self, face: FaceFeatures) -> Tensor:
        """``F_id`` of every face, ``B L C``."""

    def unconditional(self, picture: Tensor | None = None) -> Tensor:
        """``F_id`` of nobody, ``1 L C``: what zero inputs give, which is not zero.

        Args:
            picture: ``1 P W``, what the picture encoder makes of a picture that is zero after normalisation; None takes
                one token of zeros.
        """
        like = next(self.parameters())
        shape = self.shape
        vector = like.new_zeros(1, shape.vector_width) if shape.vector_width else None
        if shape.picture_width and picture is None:
            picture = like.new_zeros(1, 1, shape.picture_width)
        return self(FaceFeatures(vector, picture.to(like) if shape.picture_width else None))


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


class VectorTokens(IdentityEncoder):
    """FaceID and FaceID-portrait: the vector through an MLP into L tokens."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__(shape)
        self.proj = mlp(shape.vector_width, 2 * shape.vector_width, shape.width * shape.tokens)
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, face: FaceFeatures) -> Tensor:
        """``B E -> B L C``."""
        return self.norm(self.proj(face.vector).unflatten(-1, (self.shape.tokens, self.shape.width)))


class PictureTokens(IdentityEncoder):
    """full-face: every token of the picture through an MLP."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__(shape)
        self.proj = mlp(shape.picture_width, shape.picture_width, shape.width)
        self.proj.append(nn.LayerNorm(shape.width))

    def forward(self, face: FaceFeatures) -> Tensor:
        """``B P W -> B P C``."""
        return self.proj(face.picture)


class PerceiverAttention(nn.Module):
    """Latents look at a picture's tokens and at each other."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """``B P d`` and ``B L d`` -> ``B L d``."""
        tokens, latents = self.norm1(tokens), self.norm2(latents)
        k, v = self.to_kv(torch.cat([tokens, latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (split_heads(x, self.heads) for x in (self.to_q(latents), k.contiguous(), v.contiguous()))
        return self.to_out(merge_heads(F.scaled_dot_product_attention(q, k, v)))


def feed_forward(width: int) -> nn.Sequential:
    """The resampler's feed-forward, four times as wide inside, without biases."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
    )


class Perceiver(nn.Module):
    """Given latents read a picture's tokens: the resampler without latents of its own."""

    def __init__(self, shape: EncoderShape, tokens_width: int, inner: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(tokens_width, inner)
        self.proj_out = nn.Linear(inner, shape.width)
        self.norm_out = nn.LayerNorm(shape.width)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(inner, shape.heads, shape.head_width), feed_forward(inner)])
            for _ in range(shape.depth)
        )

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """``B L d`` and ``B P W`` -> ``B L C``."""
        tokens = self.proj_in(tokens)
        for attention, feed in self.layers:
            latents = latents + attention(tokens, latents)
            latents = latents + feed(latents)
        return self.norm_out(self.proj_out(latents))


class Resampler(IdentityEncoder, Perceiver):
    """plus-face (of a picture's tokens) and InstantID (of the vector as one token): learnt latents read them."""

    def __init__(self, shape: EncoderShape) -> None:
        nn.Module.__init__(self)
        Perceiver.__init__(self, shape, shape.picture_width or shape.vector_width, shape.inner)
        self.shape = shape
        self.latents = nn.Parameter(torch.randn(1, shape.tokens, shape.inner) / shape.inner**0.5)

    def forward(self, face: FaceFeatures) -> Tensor:
        """``B P W`` or ``B E`` -> ``B L C``."""
        tokens = face.picture if self.shape.picture_width else face.vector[:, None]
        return Perceiver.forward(self, self.latents.expand(tokens.shape[0], -1, -1), tokens)


class FaceResampler(IdentityEncoder):
    """MagicID's own, FaceID-Plus and PlusV2: the vector makes the queries, which read the picture's tokens.

    Attributes:
        shortcut_scale: weight of the vector's own tokens beside the resampler's, where the shape has the shortcut.
    """

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__(shape)
        self.shortcut_scale = 1.0
        self.proj = mlp(shape.vector_width, 2 * shape.vector_width, shape.width * shape.tokens)
        self.norm = nn.LayerNorm(shape.width)
        self.perceiver_resampler = Perceiver(shape, shape.picture_width, shape.width)

    def forward(self, face: FaceFeatures) -> Tensor:
        """``B E`` and ``B P W`` -> ``B L C``."""
        queries = self.norm(self.proj(face.vector).unflatten(-1, (self.shape.tokens, self.shape.width)))
        read = self.perceiver_resampler(queries, face.picture)
        return read + self.shortcut_scale * queries if self.shape.shortcut else read


ENCODERS: dict[str, type[IdentityEncoder]] = {
    "vector": VectorTokens,
    "picture": PictureTokens,
    "resampler": Resampler,
    "face": FaceResampler,
}


def build_encoder(shape: EncoderShape) -> IdentityEncoder:
    """An encoder of this structure with fresh weights.

    Raises:
        LikenessError: an unknown kind.
    """
    if shape.kind not in ENCODERS:
        raise bad_input("Identity encoder", f"kind {shape.kind!r}", " or ".join(ENCODERS), "Update the pack.")
    return ENCODERS[shape.kind](shape)
