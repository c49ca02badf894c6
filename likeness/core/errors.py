"""Errors a user can mend."""

from __future__ import annotations


class LikenessError(ValueError):
    """Bad input. The message names the input, what came, what was expected and how to mend it."""


def bad_input(name: str, came: object, expected: str, fix: str) -> LikenessError:
    """Compose a :class:`LikenessError` in the one form users see everywhere.

    Args:
        name: node or function and the input, e.g. ``"MagicFace Reference: mask"``.
        came: what was received, in words or as a value.
        expected: what is accepted.
        fix: what the user does next.
    """
    return LikenessError(f"{name}: got {came}; expected {expected}. {fix}")
