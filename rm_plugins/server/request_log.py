"""The access log: one line per request with its path, outcome and duration, but without prompts and keys; no successful probes."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

logger = logging.getLogger(__name__)

Fields = dict[str, Any]

_MOST_A_MINUTE = 20
_MOST_CHARACTERS = 8_000

current_fields: ContextVar[Fields | None] = ContextVar("current_fields", default=None)
"""The fields of the current request's log line; code that serves the request adds to them."""


_PROBES = frozenset({"health", "healthz", "live", "livez", "metrics", "ping", "ready", "readyz"})
"""Parts of the paths that balancers and Prometheus ask for every few seconds."""


def log_request(fields: Fields) -> None:
    """Write the log line of a request that has ended, unless it is a probe that succeeded."""
    if _is_quiet_probe(fields):
        return
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", " ".join(f"{name}={_shown(value)}" for name, value in fields.items()), extra={"fields": fields})


def _is_quiet_probe(fields: Fields) -> bool:
    is_probe = fields.get("method") in ("GET", "HEAD") and not _PROBES.isdisjoint(str(fields.get("path", "")).split("/"))
    return is_probe and int(fields.get("status") or 0) < 400


def _shown(value: Any) -> str:
    """A value as one word, so that text from a client cannot look like another line or field."""
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)


def configure_logging(form: Literal["json", "text"]) -> None:
    """Log everything to standard error, as lines of JSON or of text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if form == "json" else _TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(Repeated())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class Repeated(logging.Filter):
    """Limits the records from one place in the code per minute, and reports how many were left out.

    The lines of requests are not limited: they are short, and each request has only one.
    """

    def __init__(self, most: int = _MOST_A_MINUTE, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._most = most
        self._clock = clock
        self._counts: dict[tuple[str, str, int], tuple[int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if hasattr(record, "fields"):
            return True
        minute = int(self._clock() // 60)
        place = (record.name, record.pathname, record.lineno)
        since, number = self._counts.get(place, (minute, 0))
        if since != minute:
            if number > self._most:
                record.msg = f"{record.getMessage()} [{number - self._most} records like this were left out]"
                record.args = ()
            number = 0
        self._counts[place] = (minute, number + 1)
        return number < self._most


def shortened(text: str) -> str:
    """A text of a record, with its middle left out if it is too long."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _MOST_CHARACTERS // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters were left out ...\n{text[-half:]}"


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shortened(super().format(record))


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: Fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        line |= {"message": shortened(record.getMessage())} if fields is None else fields
        if record.exc_info:
            line["exception"] = shortened(self.formatException(record.exc_info))
        return json.dumps(line, default=str)
