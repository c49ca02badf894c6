"""One identity for a transformer block of a Stable Diffusion UNet, whatever host runs it.

The paper numbers SD1.5's 16 transformer blocks 0-15 in execution order and its 7 attention-bearing levels 0-6
(down0-2, mid, up1-3). Both numberings are derived here from the blocks a model really has, so that SD2.x, SDXL and
custom structures get theirs without a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import bad_input

SECTIONS = ("down", "mid", "up")
DEFAULT_LAYERS = "finest decoder levels"


@dataclass(frozen=True, order=True)
class BlockId:
    """Where a transformer block (self-attention, cross-attention, feed-forward) sits.

    Attributes:
        section: ``"down"``, ``"mid"`` or ``"up"``.
        level: index of the level inside its section, in execution order (``up`` counts from the coarsest); 0 for mid.
        attention: index of the spatial transformer inside the level.
        depth: index of the transformer block inside the spatial transformer (0 for SD1.x and SD2.x).
    """

    section: str
    level: int
    attention: int = 0
    depth: int = 0

    @property
    def level_name(self) -> str:
        """``"down0"``, ``"mid"``, ``"up3"``: the level's name as users write it."""
        return "mid" if self.section == "mid" else f"{self.section}{self.level}"

    def __str__(self) -> str:
        return f"{self.level_name}.{self.attention}.{self.depth}"


@dataclass(frozen=True)
class UNetLayout:
    """The transformer blocks of one UNet in execution order.

    Attributes:
        blocks: every transformer block, in execution order; a block's index is the paper's layer number.
        level_count: number of resolution levels of the encoder (4 for SD1.x and SD2.x, 3 for SDXL).
    """

    blocks: tuple[BlockId, ...]
    level_count: int

    @classmethod
    def from_counts(cls, down: Sequence[Sequence[int]], mid: Sequence[int], up: Sequence[Sequence[int]]) -> UNetLayout:
        """Build from the depth of every spatial transformer.

        Args:
            down: per encoder level (finest first) the depths of its spatial transformers, empty where it has none.
            mid: the depths of the middle block's spatial transformers.
            up: per decoder level in execution order (coarsest first) the depths of its spatial transformers.
        """
        sections = (("down", down), ("mid", [mid]), ("up", up))
        blocks = tuple(
            BlockId(section, level, attention, depth)
            for section, levels in sections
            for level, depths in enumerate(levels)
            for attention, count in enumerate(depths)
            for depth in range(count)
        )
        return cls(blocks, len(down))

    def number(self, block: BlockId) -> int:
        """The block's layer number in execution order (0-15 for SD1.5)."""
        return self.blocks.index(block)

    def factor(self, block: BlockId) -> int:
        """How many latent pixels one token of the block spans along a side (1, 2, 4, 8)."""
        if block.section == "down":
            return 2**block.level
        if block.section == "mid":
            return 2 ** (self.level_count - 1)
        return 2 ** (self.level_count - 1 - block.level)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the attention-bearing levels in execution order; their index is the paper's block number 0-6."""
        return tuple(dict.fromkeys(block.level_name for block in self.blocks))

    @property
    def factors(self) -> tuple[int, ...]:
        """The resolution factors at which the model has transformer blocks, finest first."""
        return tuple(sorted({self.factor(block) for block in self.blocks}))

    def in_levels(self, names: Iterable[str]) -> tuple[BlockId, ...]:
        """The blocks of the named levels, in execution order."""
        wanted = set(names)
        return tuple(block for block in self.blocks if block.level_name in wanted)

    def finest_decoder_levels(self, count: int = 2) -> tuple[BlockId, ...]:
        """The blocks of the ``count`` finest attention-bearing decoder levels (SD1.5: layers 10-15)."""
        names = [name for name in self.levels if name.startswith("up")]
        return self.in_levels(names[-count:])

    def select(self, layers: str) -> tuple[BlockId, ...]:
        """The blocks a user's text names, in execution order.

        Args:
            layers: :data:`DEFAULT_LAYERS`, ``"all"``, ``"decoder"``, or a comma-separated mix of level names
                (``"up2, mid"``), layer numbers and ranges of them (``"10-15"``).

        Raises:
            LikenessError: a part names nothing in this model.
        """
        text = layers.strip().lower()
        if text in ("", "default", DEFAULT_LAYERS):
            return self.finest_decoder_levels()
        if text == "all":
            return self.blocks
        if text == "decoder":
            return self.in_levels(name for name in self.levels if name.startswith("up"))
        chosen = {block for part in text.split(",") for block in self._part(part.strip(), layers)}
        return tuple(block for block in self.blocks if block in chosen)

    def _part(self, part: str, layers: str) -> tuple[BlockId, ...]:
        if part in self.levels:
            return self.in_levels([part])
        first, dash, last = part.partition("-")
        last = last if dash else first
        if first.isdigit() and last.isdigit() and int(first) <= int(last) < len(self.blocks):
            return self.blocks[int(first) : int(last) + 1]
        raise bad_input(
            "MagicFace: layers",
            f"{layers!r}, of which {part!r} names nothing in this model",
            f"level names out of {', '.join(self.levels)}, layer numbers or ranges out of 0-{len(self.blocks) - 1}, "
            f"'all', 'decoder' or '{DEFAULT_LAYERS}'",
            f"Correct that part, or write '{DEFAULT_LAYERS}'.",
        )
