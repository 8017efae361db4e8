"""The built-in providers, one per file, registered through the same hook as those of plug-ins."""

from __future__ import annotations

from collections.abc import Sequence

from rm_plugins.hooks import hookimpl
from rm_plugins.provider import Provider

__all__ = ["rm_register_providers"]


@hookimpl
def rm_register_providers() -> Sequence[type[Provider]]:
    """The built-in providers."""
    from rm_plugins.providers.combinators.cached import Cached
    from rm_plugins.providers.combinators.constant import Constant
    from rm_plugins.providers.combinators.ensemble import Ensemble
    from rm_plugins.providers.combinators.fallback import Fallback
    from rm_plugins.providers.combinators.gate import Gate
    from rm_plugins.providers.combinators.product import Product
    from rm_plugins.providers.combinators.route import Route
    from rm_plugins.providers.combinators.sum import Sum
    from rm_plugins.providers.combinators.threshold import Threshold
    from rm_plugins.providers.comparison import Comparison
    from rm_plugins.providers.function import FunctionProvider
    from rm_plugins.providers.judged.judged import Judged
    from rm_plugins.providers.judged.rubric import Rubric
    from rm_plugins.providers.models.lora_ensemble import LoraEnsemble
    from rm_plugins.providers.models.mc_dropout import McDropout
    from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
    from rm_plugins.providers.remote import Remote
    from rm_plugins.providers.rules.format import Format
    from rm_plugins.providers.rules.json_schema import JsonSchema
    from rm_plugins.providers.rules.length_window import LengthWindow
    from rm_plugins.providers.rules.math_verify import MathVerify
    from rm_plugins.providers.rules.phrases import Phrases
    from rm_plugins.providers.rules.repetition import Repetition
    from rm_plugins.providers.rules.tool_arguments import ToolArguments
    from rm_plugins.providers.rules.tool_called import ToolCalled
    from rm_plugins.providers.rules.tool_count import ToolCount
    from rm_plugins.providers.rules.tool_success import ToolSuccess
    from rm_plugins.providers.rules.verdict import Verdict

    return [
        Cached,
        Comparison,
        Constant,
        Ensemble,
        Fallback,
        Format,
        FunctionProvider,
        Gate,
        JsonSchema,
        Judged,
        LengthWindow,
        LoraEnsemble,
        MathVerify,
        McDropout,
        Phrases,
        Product,
        Remote,
        Repetition,
        Route,
        Rubric,
        SequenceClassifier,
        Sum,
        Threshold,
        ToolArguments,
        ToolCalled,
        ToolCount,
        ToolSuccess,
        Verdict,
    ]
