"""The procedural world of drawn people: identities, pictures and captions, all from a seed.

What draws them and gives their exact ground truth is :mod:`.render`; it needs skia, which nothing else here does.
"""

from .identity import Identity, numbered_identity, sample_identity
from .spec import Figure, Item, Picture, pair_caption, sample_item, sample_pair, sample_picture, sample_variants

__all__ = [
    "Figure", "Identity", "Item", "Picture", "numbered_identity", "pair_caption", "sample_identity", "sample_item",
    "sample_pair", "sample_picture", "sample_variants",
]
