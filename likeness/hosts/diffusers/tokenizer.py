"""CLIP's tokenizer without a download: its merges come with the ``clip-anytorch`` package (the file, not the code)."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPTokenizer

from ...core.errors import LikenessError
from ...core.prompt import Word
from ...miniature.models import STATE, VOCABULARY


@functools.cache
def load_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer (49,408 tokens, 77 positions), as transformers has it.

    Raises:
        LikenessError: the package that carries the merges is not installed.
    """
    folder = STATE / "tokenizer"
    if not (folder / "merges.txt").exists():
        _convert(_merges_file(), folder)
    return CLIPTokenizer.from_pretrained(str(folder))


class ClipTokenizerAdapter:
    """A transformers CLIP tokenizer as the core's :class:`~likeness.core.persona.text.Tokenizer`."""

    def __init__(self, tokenizer: Any, length: int = 77) -> None:
        self.tokenizer = tokenizer
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos
        self.length = length

    def pieces(self, text: str) -> list[int]:
        """Ids without begin and end."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def words(self, text: str) -> list[Word]:
        """The tokens without begin, end and padding, at their places in the text context (cut at its length)."""
        ids = self.pieces(text)[: self.length - 2]
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        return [Word(ids[i], i + 1, piece.endswith("</w>")) for i, piece in enumerate(pieces)]


def _merges_file() -> Path:
    spec = importlib.util.find_spec("clip")  # found, not imported: the package's code needs torchvision
    path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz" if spec and spec.origin else None
    if path is None or not path.exists():
        raise LikenessError(
            "Tokenizer: CLIP's merges were not found; expected the package clip-anytorch. "
            "Install it with: pip install --no-deps clip-anytorch"
        )
    return path


def _convert(source: Path, folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt`` as transformers expects them."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : VOCABULARY - 2 * 256 - 2 + 1]
    symbols = _byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m.split()) for m in merges),
              "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False),
                                       encoding="utf-8")
    config = {"model_max_length": 77, "pad_token": "<|endoftext|>", "bos_token": "<|startoftext|>",
              "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def _byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes, in CLIP's order: printable bytes first, the others shifted past 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(hidden))]


def tokenize(captions: Sequence[str]) -> Tensor:
    """Token ids ``B 77``."""
    tokenizer = load_tokenizer()
    given = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
    return tokenizer(list(captions), **given).input_ids
