"""Where a concept's word or phrase stands among a prompt's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import bad_input


def find_phrase(phrase: str, phrase_ids: Sequence[int], prompt_ids: Sequence[int], prompt: str = "") -> tuple[int, ...]:
    """Positions in the text context of every occurrence of a phrase, all its tokens.

    Args:
        phrase: the words, for messages.
        phrase_ids: their token ids, without start and end tokens.
        prompt_ids: the ids the text encoder was fed, start, end and padding tokens included, windows one after the
            other; a position here is a row of the text context.
        prompt: the prompt's text, for messages.

    Raises:
        LikenessError: the phrase has no tokens, or is not in the prompt.
    """
    wanted, ids = list(phrase_ids), list(prompt_ids)
    if not wanted:
        raise bad_input("MagicFace: concept word", repr(phrase), "a word of the prompt", "Write the concept's word.")
    starts = [i for i in range(len(ids) - len(wanted) + 1) if ids[i : i + len(wanted)] == wanted]
    if not starts:
        shown = f" {prompt!r}" if prompt else ""
        raise bad_input(
            f"MagicFace reference '{phrase}': concept word",
            f"{phrase!r}, which does not stand in the prompt{shown}",
            "a word or phrase that the prompt contains, spelled the same way",
            "Add it to the prompt, or name the word the prompt uses for this concept.",
        )
    return tuple(sorted({start + i for start in starts for i in range(len(wanted))}))
