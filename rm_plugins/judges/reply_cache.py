"""Caches replies in a folder, a file for each question."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rm_plugins.canonical_json import canonical_json
from rm_plugins.errors import SpecError
from rm_plugins.files import write_shared
from rm_plugins.judges.judge import Question, Reply
from rm_plugins.replies import is_probability

logger = logging.getLogger(__name__)


class ReplyCache:
    """Replies by judge and question.

    Any number of processes, also on several machines, may use a folder at the same time: each reply is written to a file of its own, which
    appears whole or not at all. A file that is damaged or cannot be written is reported once, and the question is asked.

    Args:
        folder: The folder, which is made if it does not exist.
        identity: What the judge's answers depend on, as JSON values.

    Raises:
        SpecError: The folder is something else, or cannot be made.
    """

    def __init__(self, folder: str, identity: Any) -> None:
        self.folder = Path(os.path.expanduser(folder))
        self._identity = blake2b(canonical_json(identity).encode(), digest_size=32).digest()
        self._warned = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(f"the folder {folder!r} cannot be made: {error.strerror or error}.", key="cache") from error

    def get(self, question: Question) -> Reply | None:
        """The reply to a question; None if it is not known."""
        path = self._path(question)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            self._warn(f"{path} cannot be read ({error}); the question is asked again.")
            return None
        reply = _reply(content)
        if reply is None:
            self._warn(f"{path} is not a reply of a judge; the question is asked again.")
        return reply

    def put(self, question: Question, reply: Reply) -> None:
        """Keep a reply; one with an error, or with wrong probabilities, is not kept, because it may be another one the next time."""
        probabilities = reply.label_probabilities
        if reply.error or (probabilities is not None and not all(map(is_probability, probabilities.values()))):
            return
        path = self._path(question)
        kept = None if probabilities is None else {label: float(value) for label, value in probabilities.items()}
        content = {"text": reply.text, "label_probabilities": kept}
        try:
            path.parent.mkdir(exist_ok=True)
            write_shared(path, json.dumps(content))
        except OSError as error:  # OutputError is one
            self._warn(f"a reply cannot be kept in {self.folder}: {error}. Scoring continues without it.")

    def _path(self, question: Question) -> Path:
        name = blake2b(question.key, key=self._identity, digest_size=20).hexdigest()
        return self.folder / name[:2] / f"{name}.json"

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("The cache of a judge: %s", text)


def _reply(content: Any) -> Reply | None:
    match content:
        case {"text": str(text), "label_probabilities": None}:
            return Reply(text, cached=True)
        case {"text": str(text), "label_probabilities": Mapping() as probabilities} if all(
            map(is_probability, probabilities.values())
        ):
            return Reply(text, dict(probabilities), cached=True)
    return None
