"""Makes text from outside safe to print: characters that control a terminal are shown as escapes."""

from __future__ import annotations

import re

_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls except line feed and tab: ESC and CSI begin commands, CR overwrites the line
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # writing direction, which can make a text look like another
    "\u2028\u2029\ufeff\ufff9-\ufffb"  # line separators and invisible characters
    "\ud800-\udfff\U000e0000-\U000e007f"  # lone surrogates, and tags, which are invisible
    "]"
)


def printable(text: str) -> str:
    r"""Replace characters that a terminal would execute or hide by JSON escapes; JSON text keeps its meaning.

    >>> print(printable("a\x1b[2Jb\u202e"))
    a\u001b[2Jb\u202e
    """
    return _UNSAFE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    number = ord(match[0])
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000
    return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"
