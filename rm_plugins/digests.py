"""Digests in the place of files, for what depends on their contents."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any


def with_digests(value: Any) -> Any:
    """A setting in which every absolute path of a file, at any depth, is replaced by the file's SHA-256."""
    if isinstance(value, Mapping):
        return {key: with_digests(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_digests(item) for item in value]
    if isinstance(value, str) and os.path.isabs(value) and os.path.isfile(value):
        with open(value, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return value
