"""Text of unknown origin, such as class and file names, made fit to be shown in any form."""

from __future__ import annotations

import re
import unicodedata

# A dot before a letter could make a link of "www.name.org".
_MEANINGFUL = re.compile(r"[^\w ,;:%().-]|_|\.(?=[^\W\d])")
_PLAIN = re.compile(r"[\w./-]([\w ./-]*[\w./-])?")


def printable(text: str) -> str:
    """Return text without what cannot be shown or would reorder what is: control characters and halves of pairs.

    Invisible formatting characters are left out, the others become a replacement character.
    """
    if text.isprintable():
        return text
    kept = (c for c in text if c.isprintable() or unicodedata.category(c) != "Cf")
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in kept)


def shortened(text: str, most: int = 28) -> str:
    """Return printable text, its middle replaced by an ellipsis where it is longer than ``most`` characters."""
    text = printable(text)
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 1]}…{text[-tail:]}"


def encodable(text: str) -> str:
    """Return text without what UTF-8 or a reader of CSV chokes on: halves of pairs, and zero bytes."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")


def markdown_name(name: str) -> str:
    """Return a name of unknown origin as code, in which Markdown, HTML, links and mentions mean nothing.

    Anything but letters, digits and the like is written as a character reference, which cannot end a cell of a
    table or the code.
    """
    text = shortened(name, 60)
    if _PLAIN.fullmatch(text):
        return f"`{text}`"
    return "<code>" + "".join(c if c.isalnum() else f"&#{ord(c)};" for c in text) + "</code>"


def markdown_text(text: str) -> str:
    """Return a sentence with names of unknown origin in it, which means nothing to Markdown or HTML."""
    return _MEANINGFUL.sub(lambda found: f"&#{ord(found[0])};", printable(text))
