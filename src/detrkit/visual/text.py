"""Text of unknown origin, such as class and file names, made fit to be shown."""

from __future__ import annotations

import html
import unicodedata


def printable(text: str) -> str:
    """The text without what cannot be shown or would reorder what is: control characters and halves of pairs.

    Invisible formatting characters are left out, the others become a replacement character.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else ""
        if unicodedata.category(character) == "Cf"
        else " "
        if character.isspace()
        else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def shortened(text: str, most: int = 28) -> str:
    """The printable text, its middle replaced by an ellipsis where it is longer than ``most`` characters."""
    text = printable(text)
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 1]}…{text[-tail:]}"


def escaped(text: object) -> str:
    """Printable text that means nothing to HTML, also inside quotes."""
    return html.escape(printable(str(text)))
