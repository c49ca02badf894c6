"""Exact attention over a picture's own keys and further ones, on the fast kernel and without forming the map.

Everything public takes heads merged (``B N C``, as a UNet's projections give them) unless it says otherwise. Attention
over several sets of keys is computed set by set and joined by the log of each softmax's sum (its *mass*): so each call
is a plain one, of the head width the kernel is made for, whatever is added to a set's logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

AttentionFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
LANE = 8  # head widths the fast kernels take without padding are multiples of this
QUERY_CHUNK = 1024  # queries whose map is formed at once, where no kernel tells the mass
aten = torch.ops.aten


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """``B N C -> B H N D``, a view."""
    batch, tokens, width = x.shape
    return x.view(batch, tokens, heads, width // heads).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """``B H N D -> B N C``."""
    batch, heads, tokens, width = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, heads * width)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """``Softmax(Q K^T / sqrt(d)) V``: ``B N C``, ``B M C`` twice -> ``B N C``."""
    return merge_heads(F.scaled_dot_product_attention(*(split_heads(x, heads) for x in (q, k, v))))


# --- several sets of keys ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Attention over one set of keys.

    Attributes:
        out: ``B N H D``. mass: ``B N H`` float32, the log of the sum of the exponentials of the logits.
    """

    out: torch.Tensor
    mass: torch.Tensor

    def raised(self, bias: float) -> Part:
        """The same with ``bias`` added to all logits."""
        return Part(self.out, self.mass + bias) if bias else self

    def joined(self, other: Part) -> Part:
        """Attention over both sets of keys."""
        return Part(self.blended(other), torch.logaddexp(self.mass, other.mass))

    def blended(self, other: Part) -> torch.Tensor:
        """The output alone of attention over both sets of keys, ``B N H D``."""
        share = torch.sigmoid(other.mass - self.mass).unsqueeze(-1).float()
        return torch.lerp(self.out.float(), other.out.float(), share).to(self.out.dtype)  # half is too coarse a share


def attend_part(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> Part:
    """:func:`attend` that also tells the mass."""
    q4, k4, v4 = (split_heads(x, heads) for x in (q, k, v))
    out, mass = _kernel(q.device, q.dtype, q4.shape[-1])(q4, k4, v4)
    return Part(out.transpose(1, 2), mass.transpose(1, 2))


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return aten._scaled_dot_product_flash_attention(q, k, v)[:2]


def _efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out, mass = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
    return out, mass[..., : q.shape[2]]  # padded to the kernel's block


def _flash_on_cpu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]


def _formed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For devices of which PyTorch has no kernel that tells the mass: the map is formed, some queries at a time."""
    parts = []
    for rows in q.split(QUERY_CHUNK, dim=2):
        logits = ((rows * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).float()
        parts.append((logits.softmax(dim=-1).to(v.dtype) @ v, logits.logsumexp(dim=-1)))
    out, mass = (torch.cat(x, dim=2) for x in zip(*parts, strict=True))
    return out, mass


@lru_cache(maxsize=256)
def _kernel(device: torch.device, dtype: torch.dtype, width: int) -> Kernel:
    """The first kernel that takes such heads on a device and gives what the definition says; tried once a process."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 2, width, generator=generator).to(device, dtype).transpose(1, 2) for n in (16, 24, 24))
    wanted = _formed(*(x.float() for x in (q, k, v)))
    for kernel in (_flash, _efficient, _flash_on_cpu):
        try:
            found = kernel(q, k, v)
            errors = [(a.float() - b).abs().max() for a, b in zip(found, wanted, strict=True)]
            if float(torch.stack(errors).max()) < 0.05:
                return kernel
        except (RuntimeError, NotImplementedError):
            continue
    return _formed


# --- maps -------------------------------------------------------------------------------------------------------------


def propagate(
    q: torch.Tensor, k: torch.Tensor, values: torch.Tensor, heads: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """``S V`` with S the head-mean of ``Softmax(Q K^T / sqrt(d))``, without forming S.

    The head-mean of S applied to values equals the mean over heads of every head's attention over these values.

    Args:
        q: ``B N C``.
        k: ``B M C``.
        values: ``B M J``, any number of columns.
        heads: number of heads merged in C.
        dtype: of the result.

    Returns:
        ``B N J``.
    """
    q4, k4 = split_heads(q, heads), split_heads(k, heads)
    d = q4.shape[-1]
    widest = max(d, 128)
    parts = [_propagate_columns(q4, k4, columns.to(q.dtype), dtype) for columns in values.split(widest, dim=-1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _propagate_columns(q4: torch.Tensor, k4: torch.Tensor, columns: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    d, count = q4.shape[-1], columns.shape[-1]
    width = -(-max(d, count) // LANE) * LANE
    if width > count:
        columns = F.pad(columns, (0, width - count))
    v4 = columns.unsqueeze(1).expand(-1, q4.shape[1], -1, -1)  # B H M D, one for all heads
    if width > d:
        q4, k4 = F.pad(q4, (0, width - d)), F.pad(k4, (0, width - d))
    return F.scaled_dot_product_attention(q4, k4, v4, scale=d**-0.5)[..., :count].mean(dim=1, dtype=dtype)
