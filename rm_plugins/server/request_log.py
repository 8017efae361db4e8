"""One line for every request: what it was, what became of it, and how long that took; no prompt and no key."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

logger = logging.getLogger(__name__)

Fields = dict[str, Any]

current_fields: ContextVar[Fields | None] = ContextVar("current_fields", default=None)
"""The fields of the line of the request that runs here, for those who serve it to add to."""


def log_request(fields: Fields) -> None:
    """Write the line of a request that has ended."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", " ".join(f"{name}={_shown(value)}" for name, value in fields.items()), extra={"fields": fields})


def _shown(value: Any) -> str:
    """A value in one word: what a client sent must not look like another line, or another field."""
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)


def configure_logging(form: Literal["json", "text"]) -> None:
    """Have everything logged to standard error, a line of JSON or of text each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonLines() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: Fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        line |= {"message": record.getMessage()} if fields is None else fields
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
