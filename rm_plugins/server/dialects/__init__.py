"""The dialects of the server, one per file, each registered through the hook ``rm_register_dialects``.

Importing this package does not import a web framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from rm_plugins.hooks import hookimpl
from rm_plugins.server.dialects.dialect import Dialect, Problem, Scored, Scorer, score_all, text_sample

__all__ = ["Dialect", "Problem", "Scored", "Scorer", "rm_register_dialects", "score_all", "text_sample"]


@hookimpl
def rm_register_dialects() -> Sequence[type[Dialect]]:
    """The built-in dialects; none if the web framework (the extra ``serve``) is not installed."""
    if find_spec("fastapi") is None:
        return []
    from rm_plugins.server.dialects.oip import OpenInference
    from rm_plugins.server.dialects.openrlhf import OpenRLHF
    from rm_plugins.server.dialects.rewards import Native
    from rm_plugins.server.dialects.tei import TEI
    from rm_plugins.server.dialects.vllm import VLLM

    return [Native, VLLM, TEI, OpenRLHF, OpenInference]
