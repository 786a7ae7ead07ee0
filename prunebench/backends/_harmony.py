r"""Texts in the Harmony format of gpt-oss, rewritten into the form of other reasoning models.

A Harmony text is a row of messages, each with a header that names its channel, for instance

    <|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>

which becomes `A\n</think>\n\nB`: what stands in the channel `final` follows `</think>`, all other
channels are reasoning. Knows text only. Format: https://cookbook.openai.com/articles/openai-harmony
"""

from __future__ import annotations

import re

from prunebench.grading import THINK_END, THINK_START

CHANNEL = "<|channel|>"
"""A vocabulary with this token writes Harmony."""
START, MESSAGE, CONSTRAIN = "<|start|>", "<|message|>", "<|constrain|>"
MARKERS = (START, CHANNEL, CONSTRAIN, MESSAGE, "<|end|>", "<|return|>", "<|call|>")
_MARKER = re.compile(f"({'|'.join(map(re.escape, MARKERS))})")


def plain(text: str) -> str:
    """The text with `<think>` tags instead of headers.

    The text of a prefix is a prefix of the whole text: an unfinished header shows nothing. A text
    that begins without a header is taken for the inside of a reasoning message. Reasoning after a
    `final` message is put between tags of its own.
    """
    said, *rest = _MARKER.split(text)
    channel, in_final = "", False
    for marker, piece in zip(rest[::2], rest[1::2], strict=True):
        if marker == START:
            channel = ""
        elif marker == CHANNEL:
            channel = (piece.split() or [""])[0]  # a recipient may follow
        elif marker == MESSAGE:
            was_final, in_final = in_final, channel == "final"
            if in_final and not was_final:
                said += f"\n{THINK_END}\n\n" if said else f"{THINK_END}\n\n"
            elif was_final and not in_final:
                said += f"\n\n{THINK_START}\n"
            elif said:
                said += "\n\n"
            said += piece
        elif marker != CONSTRAIN:
            said += piece  # nothing, unless the model forgot a header
    return said
