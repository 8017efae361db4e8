"""Text from outside that is safe to print: what a terminal would obey is shown instead."""

from __future__ import annotations

import re

_OBEYED = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, of which line feeds and tabs are left: ESC and CSI begin commands, CR overwrites
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing, which makes a text look like another
    "\u2028\u2029\ufeff\ufff9-\ufffb"  # line separators and what is hidden
    "\ud800-\udfff\U000e0000-\U000e007f"  # what no text has, and tags, which are invisible
    "]"
)


def printable(text: str) -> str:
    r"""The text with JSON's escapes in place of characters that a terminal obeys or hides; JSON stays the same JSON.

    >>> print(printable("a\x1b[2Jb\u202e"))
    a\u001b[2Jb\u202e
    """
    return _OBEYED.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000
    return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"
