"""The prompt of an HTTP request, read from its body in any dialect of the server: requests of one prompt go to one replica."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_PROMPTS = ("prompts", "query", "text_1", "queries", "data_1")
"""Fields that hold the prompt by itself."""
_JOINED = ("input", "inputs", "text", "prompt", "query")
"""Fields that hold a text, or token ids, in which the completion follows the prompt."""


def prompt_of_request(body: bytes, characters: int) -> str:
    """A digest of the prompt of the first sample in a request's body; empty if there is none.

    Where a dialect joins prompt and completion, the beginning of the text stands for the prompt.

    Args:
        body: The body, as it was sent.
        characters: How many characters, or token ids, of a joined text stand for the prompt.

    >>> alone = prompt_of_request(b'{"samples": [{"prompt": "2+2?", "completion": "4"}]}', 8)
    >>> alone == prompt_of_request(b'{"samples": [{"prompt": "2+2?", "completion": "5"}]}', 8)
    True
    >>> prompt_of_request(b'{"input": "2 plus 2? 4"}', 8) == prompt_of_request(b'{"input": ["2 plus 2? 5"]}', 8)
    True
    >>> prompt_of_request(b"", 8)
    ''
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    prompt = _prompt(content, characters) if isinstance(content, Mapping) else None
    if not prompt:
        return ""
    return hashlib.blake2b(json.dumps(prompt, sort_keys=True).encode(), digest_size=16).hexdigest()


def _prompt(content: Mapping[str, Any], characters: int) -> Any:
    samples = content.get("samples")
    if isinstance(samples, list) and samples and isinstance(samples[0], Mapping):
        sample = samples[0]
        return sample.get("prompt") or _beginning(sample.get("text") or sample.get("token_ids"), characters)
    messages = content.get("messages")
    if isinstance(messages, list) and messages:
        return messages[:-1]
    has_documents = "texts" in content or "documents" in content
    for field in _PROMPTS:
        if content.get(field) and (field != "query" or has_documents):
            return _first(content[field])
    for field in _JOINED:
        if content.get(field):
            return _beginning(_first(content[field]), characters)
    return None


def _first(value: Any) -> Any:
    """The first text or list of token ids in nested lists, or in the first tensor of the Open Inference Protocol."""
    while isinstance(value, list) and value and not isinstance(value[0], int):
        value = value[0].get("data") if isinstance(value[0], Mapping) else value[0]
    return value


def _beginning(value: Any, characters: int) -> Any:
    return value[:characters] if isinstance(value, (str, list)) else None
