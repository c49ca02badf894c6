"""The procedural world of drawn people: identities, pictures, captions and exact ground truth, all from a seed."""

from .identity import Identity, sample_identity
from .render import FigureTruth, details, ground_truth, item_mask, render
from .spec import Figure, Item, Picture, pair_caption, sample_item, sample_pair, sample_picture, sample_variants

__all__ = [
    "Figure", "FigureTruth", "Identity", "Item", "Picture", "details", "ground_truth", "item_mask", "pair_caption",
    "render", "sample_identity", "sample_item", "sample_pair", "sample_picture", "sample_variants",
]
