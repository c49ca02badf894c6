"""Content digests."""

from __future__ import annotations

import hashlib

import torch


def digest(*parts: object) -> str:
    """A content digest of tensors (by shape and float32 values) and plain values (by what they print as)."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            sha.update(str(tuple(part.shape)).encode())
            sha.update(part.detach().float().cpu().contiguous().numpy().tobytes())
        else:
            sha.update(repr(part).encode())
        sha.update(b"|")
    return sha.hexdigest()
