"""The protocols of remote scorers, one per file, used as ``protocol: NAME`` or ``protocol: {name: NAME, ...}``."""

from __future__ import annotations

from collections.abc import Sequence

from rm_plugins.hooks import hookimpl
from rm_plugins.protocols.auto import Auto
from rm_plugins.protocols.native import Native
from rm_plugins.protocols.oip import OpenInference
from rm_plugins.protocols.openai_judge import OpenAIJudge
from rm_plugins.protocols.openrlhf import OpenRLHF
from rm_plugins.protocols.protocol import Answer, Ask, Failure, Item, Protocol, Request, Response, ServerFacts, finite, in_order
from rm_plugins.protocols.sglang import SGLang
from rm_plugins.protocols.swift import Swift
from rm_plugins.protocols.tei import TEI
from rm_plugins.protocols.vllm import VLLM

__all__ = [
    "TEI",
    "VLLM",
    "Answer",
    "Ask",
    "Auto",
    "Failure",
    "Item",
    "Native",
    "OpenAIJudge",
    "OpenInference",
    "OpenRLHF",
    "Protocol",
    "Request",
    "Response",
    "SGLang",
    "ServerFacts",
    "Swift",
    "finite",
    "in_order",
    "rm_register_protocols",
]


@hookimpl
def rm_register_protocols() -> Sequence[type[Protocol]]:
    """The built-in protocols."""
    return [Auto, Native, OpenAIJudge, OpenInference, OpenRLHF, SGLang, Swift, TEI, VLLM]
