"""Exact attention over a picture's own keys and further ones, on the fast kernel and without forming the map.

Everything here takes heads merged (``B N C``, as a UNet's projections give them) and calls
:func:`torch.nn.functional.scaled_dot_product_attention`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

AttentionFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
LANE = 8  # head widths the fast kernels take without padding are multiples of this


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """``B N C -> B H N D``, a view."""
    batch, tokens, width = x.shape
    return x.view(batch, tokens, heads, width // heads).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """``B H N D -> B N C``."""
    batch, heads, tokens, width = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, heads * width)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    bias: torch.Tensor | None = None,
    lanes: bool | None = None,
) -> torch.Tensor:
    """``Softmax(Q K^T / sqrt(d) + bias) V``.

    Args:
        q: ``B N C``.
        k: ``B M C``.
        v: ``B M C``.
        heads: number of heads merged in C.
        bias: ``M``, added to every query's logit of that key; None is none.
        lanes: carry the bias in widened heads instead of an additive mask; None picks what the device's kernel
            takes without falling back (CUDA's flash kernel takes no mask in half precision).

    Returns:
        ``B N C``.
    """
    q4, k4, v4 = (split_heads(x, heads) for x in (q, k, v))
    if bias is None:
        return merge_heads(F.scaled_dot_product_attention(q4, k4, v4))
    if lanes is None:
        lanes = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16)
    if lanes:
        return merge_heads(_attend_lanes(q4, k4, v4, bias, None)[..., : v4.shape[-1]])
    # bias as an additive mask that is broadcast over batch, heads and queries: 1 1 1 M
    mask = bias.to(q.dtype).view(1, 1, 1, -1)
    return merge_heads(F.scaled_dot_product_attention(q4, k4, v4, attn_mask=mask))


def attend_split(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, bias: torch.Tensor, own: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The share of :func:`attend` that comes from the keys after the first ``own`` ones.

    With own keys ``o`` and further keys ``r``, ``attend = (1 - g) attend_o + part``: so an attention over the own
    keys that somebody else computed can be combined exactly with the further ones.

    Returns:
        part: ``B N C``, the further keys' contribution (already scaled by their mass).
        mass: ``B H N 1``, g, the further keys' share of the attention, per head.
    """
    q4, k4, v4 = (split_heads(x, heads) for x in (q, k, v))
    d = v4.shape[-1]
    further = torch.zeros(k4.shape[2], dtype=v.dtype, device=v.device)
    further[own:] = 1
    wide = _attend_lanes(q4, k4, v4 * further[:, None], bias, further)
    return merge_heads(wide[..., :d]), wide[..., d : d + 1]


def blend_split(own: torch.Tensor, part: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """``(1 - g) own + part`` (see :func:`attend_split`), with ``own`` and ``part`` ``B N C``, g ``B H N 1``."""
    heads = mass.shape[1]
    return merge_heads(split_heads(own, heads) * (1 - mass)) + part


def _attend_lanes(
    q4: torch.Tensor, k4: torch.Tensor, v4: torch.Tensor, bias: torch.Tensor, extra: torch.Tensor | None
) -> torch.Tensor:
    """Attention over heads widened by constant lanes: ``q' k' = q k + bias sqrt(d)``, so the softmax sees the bias.

    The bias goes in two lanes, its rounding to the working precision and the remainder, so that half precision
    loses nothing. ``extra`` (``M``) becomes one more value component, returned at index d.
    """
    batch, heads, queries, d = q4.shape
    keys = k4.shape[2]
    width = -(-(d + 2) // LANE) * LANE
    scaled = bias.float() * d**0.5
    high = scaled.to(q4.dtype)
    q = q4.new_zeros(batch, queries, heads, width).transpose(1, 2)  # memory B N H D, seen as B H N D
    k = q4.new_zeros(batch, keys, heads, width).transpose(1, 2)
    v = q4.new_zeros(batch, keys, heads, width).transpose(1, 2)
    q[..., :d], k[..., :d], v[..., :d] = q4, k4, v4
    q[..., d : d + 2] = 1
    k[..., d] = high
    k[..., d + 1] = (scaled - high.float()).to(q4.dtype)
    if extra is not None:
        v[..., d] = extra
    return F.scaled_dot_product_attention(q, k, v, scale=d**-0.5)


def propagate(q: torch.Tensor, k: torch.Tensor, values: torch.Tensor, heads: int) -> torch.Tensor:
    """``S V`` with S the head-mean of ``Softmax(Q K^T / sqrt(d))``, without forming S.

    The head-mean of S applied to values equals the mean over heads of every head's attention over these values.

    Args:
        q: ``B N C``.
        k: ``B M C``.
        values: ``B M J``, any number of columns.
        heads: number of heads merged in C.

    Returns:
        ``B N J`` in the dtype of ``values``.
    """
    q4, k4 = split_heads(q, heads), split_heads(k, heads)
    d = q4.shape[-1]
    widest = max(d, 128)
    parts = [_propagate_columns(q4, k4, columns.to(q.dtype), d) for columns in values.split(widest, dim=-1)]
    return torch.cat(parts, dim=-1).to(values.dtype)


def _propagate_columns(q4: torch.Tensor, k4: torch.Tensor, columns: torch.Tensor, d: int) -> torch.Tensor:
    count = columns.shape[-1]
    width = -(-max(d, count) // LANE) * LANE
    v4 = F.pad(columns, (0, width - count)).unsqueeze(1).expand(-1, q4.shape[1], -1, -1)  # B H M D, one for all heads
    if width > d:
        q4, k4 = F.pad(q4, (0, width - d)), F.pad(k4, (0, width - d))
    return F.scaled_dot_product_attention(q4, k4, v4, scale=d**-0.5)[..., :count].float().mean(dim=1)


def mean_probabilities(q: torch.Tensor, k: torch.Tensor, heads: int) -> torch.Tensor:
    """Head-mean of ``Softmax(Q K^T / sqrt(d))`` as ``B N M`` float32; for few keys (a text context) only."""
    q4, k4 = split_heads(q, heads), split_heads(k, heads)
    logits = (q4 @ k4.transpose(-1, -2)).float() * q4.shape[-1] ** -0.5
    return logits.softmax(dim=-1).mean(dim=1)
