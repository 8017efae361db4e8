"""Takes secrets out of all text that leaves: messages of errors, lines of logs, what is shown. It goes by their values, not by names."""

from __future__ import annotations

import base64
import binascii
import html
import json
import logging
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import quote

HIDDEN = "***"

SHORTEST = 4
"""Characters of the shortest secret that is removed from text; shorter ones occur in any text by chance."""

PIECE = 6
"""Characters of the shortest piece of a secret that is removed, where a message was cut or a server quotes a part."""

_lock = threading.RLock()  # a collection of garbage may have it taken again
_kept: dict[int, frozenset[str]] = {}
_whole: tuple[str, ...] = ()  # the longest first
_pieces: frozenset[str] = frozenset()


def keep_secret(owner: object, *values: str) -> None:
    """Remove these values from every text while their owner lives, whole and in pieces, as they are and as servers quote them.

    Args:
        owner: The object that uses them; once it is deleted, or `forget_secrets` is called, they are ordinary words.
        values: The secrets.
    """
    secrets = frozenset(secret for value in values for secret in _secrets_in(value))
    with _lock:
        before = _kept.get(id(owner))
        if not secrets <= (before or frozenset()):
            _kept[id(owner)] = secrets | (before or frozenset())
            _rebuild()
            if before is None:
                weakref.finalize(owner, _forget, id(owner)).atexit = False


def forget_secrets(owner: object) -> None:
    """Stop removing its values, because it no longer uses them."""
    _forget(id(owner))


def _forget(owner: int) -> None:
    with _lock:
        if _kept.pop(owner, None):
            _rebuild()


def _rebuild() -> None:
    global _whole, _pieces
    _whole = tuple(sorted(frozenset().union(*_kept.values()), key=len, reverse=True))
    pieces = (secret[start : start + PIECE] for secret in _whole for start in range(len(secret) - PIECE + 1))
    _pieces = frozenset(piece for piece in pieces if not any(map(str.isspace, piece)))


def redacted(text: str) -> str:
    """The text without any secret.

    >>> class Client: ...
    >>> client = Client()
    >>> keep_secret(client, "Bearer sk-0123456789")
    >>> redacted("no such key: sk-0123456789"), redacted("no such key: sk-01234...")
    ('no such key: ***', 'no such key: ***...')
    """
    for secret in _whole:
        text = text.replace(secret, HIDDEN)
    return _without_pieces(text, _pieces) if _pieces else text


def redact_record(record: logging.LogRecord) -> bool:
    """A filter of a logger: takes secrets out of its lines, and lets all pass."""
    told = record.getMessage()
    clean = redacted(told)
    if clean != told:
        record.msg, record.args = clean, ()
    return True


def redact_logs(names: Iterable[str]) -> None:
    """Remove secrets from the records of the loggers of these names. Child loggers do not inherit a filter, so each logger is named."""
    for name in names:
        logging.getLogger(name).addFilter(redact_record)


def _without_pieces(text: str, pieces: frozenset[str]) -> str:
    kept: list[str] = []
    position = 0
    while position < len(text):
        end = position
        while text[end : end + PIECE] in pieces:
            end += 1
        if end == position:
            kept.append(text[position])
            position += 1
        else:
            kept.append(HIDDEN)
            position = end - 1 + PIECE
    return "".join(kept)


def _secrets_in(value: str) -> set[str]:
    """A value, what follows ``Bearer`` or such in it, what ``Basic`` encodes, and how these are quoted elsewhere."""
    scheme, _, credentials = value.strip().partition(" ")
    plain = {value.strip(), credentials.strip()}
    if scheme.lower() == "basic":
        with suppress(binascii.Error, UnicodeDecodeError):
            plain.add(base64.b64decode(credentials).decode().partition(":")[2])
    quoted = {
        form
        for secret in plain
        for form in (
            secret,
            quote(secret, safe=""),
            html.escape(secret),
            json.dumps(secret)[1:-1],
            json.dumps(secret)[1:-1].replace("/", "\\/"),
            repr(secret)[1:-1],
            base64.b64encode(secret.encode()).decode().rstrip("="),
        )
    }
    return {form for form in quoted if len(form) >= SHORTEST}
