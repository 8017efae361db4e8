"""Every error that rm-plugins raises on purpose.

Each error also inherits the built-in that fits, so that ``except ValueError`` keeps working::

    RmPluginsError
    ├── PluginError
    │   ├── DuplicateNameError      (ValueError)   one name, two classes
    │   ├── BrokenPluginError       (ImportError)  a plug-in that could not be loaded
    │   └── UnknownNameError        (LookupError)  a name that no plug-in registered
    ├── SpecError                   (ValueError)   a spec that cannot become a provider
    ├── DataError                   (ValueError)   a row, a sample or a file that cannot be read
    ├── OutputError                 (OSError)      a file or folder that cannot be written
    ├── ModelError                  (ValueError)   a folder that is not a usable reward model
    │   └── ManifestError                          a manifest that does not match the model beside it
    ├── ScoringError                (RuntimeError) a provider that could not score
    │   └── AnswerError                            a remote scorer whose answer violates its protocol
    ├── ProcessError                (RuntimeError) processes of a training or a job of which one is missing, or that differ
    ├── TrainingError               (FloatingPointError) a training whose loss or weights became NaN or infinite
    ├── UnsupportedError            (TypeError)    something this provider or TRL version does not do
    └── MissingDependencyError      (ImportError)  an optional package that is not installed
"""

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Self

from rm_plugins.redaction import redacted

__all__ = [
    "AnswerError",
    "BrokenPluginError",
    "DataError",
    "DuplicateNameError",
    "ManifestError",
    "MissingDependencyError",
    "ModelError",
    "OutputError",
    "PluginError",
    "ProcessError",
    "RmPluginsError",
    "ScoringError",
    "SpecError",
    "TrainingError",
    "UnknownNameError",
    "UnsupportedError",
    "as_one_error",
    "did_you_mean",
    "nearest_name",
    "plain_error",
]

_CLOSE = 0.75
"""The least similarity of `difflib` at which a name is proposed in place of another."""
_SHORTEST_START = 3


class RmPluginsError(Exception):
    """The root of the tree: catch it to catch everything that rm-plugins raises on purpose.

    Args:
        message: What happened, to which component, what is allowed, what to do.
        rows: The positions in the batch that failed; None where all did, or none in particular.

    Attributes:
        provider: The label of the reward that failed, if one did.
        path: Its place in the spec that it was loaded from, if it has one.
    """

    provider: str | None = None
    path: str | None = None

    def __init__(self, message: str = "", rows: Collection[int] | None = None) -> None:
        super().__init__(*([redacted(message)] if message else []))  # a server may quote a key in its answer
        self.rows = None if rows is None else frozenset(int(row) for row in rows)

    @property
    def by_row(self) -> dict[int, "RmPluginsError"]:
        """The error at each of its rows."""
        return dict.fromkeys(sorted(self.rows or ()), self)

    def caused_by(self, error: BaseException) -> Self:
        """This error with `error` as its ``__cause__``, for errors that are returned and not raised."""
        self.__cause__ = error
        return self

    def __str__(self) -> str:
        # Some built-ins in the tree (LookupError's subclasses) would put quotes around the message.
        return str(self.args[0]) if self.args else type(self).__name__


class PluginError(RmPluginsError):
    """Something is wrong with a plug-in or with what plug-ins registered."""


class DuplicateNameError(PluginError, ValueError):
    """Two classes were registered under one name."""


class BrokenPluginError(PluginError, ImportError):
    """A plug-in could not be loaded; the original exception is its ``__cause__``."""


class UnknownNameError(PluginError, LookupError):
    """No plug-in registered this name."""


class SpecError(RmPluginsError, ValueError):
    """A spec cannot become a provider; the message names the path inside the spec.

    Args:
        message: What is wrong, what is allowed, what to do.
        key: The key in the component's own spec that is wrong, such as ``weights``; the rest of the path is added in front.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.message = redacted(message)
        self.key = key

    def inside(self, path: str) -> "SpecError":
        """The same error for a component at `path` in another component's spec."""
        return SpecError(self.message, f"{path}.{self.key}" if self.key else path)

    def __reduce__(self) -> tuple[type["SpecError"], tuple[str, str]]:
        return type(self), (self.message, self.key)


class DataError(RmPluginsError, ValueError):
    """A sample, a row or a file does not have the required form; `rows` are the samples of a batch that do not."""


class OutputError(RmPluginsError, OSError):
    """A file or folder cannot be written: something else is at its path, or the system refuses it."""


class ModelError(RmPluginsError, ValueError):
    """A folder or hub id is not a usable reward model."""


class ManifestError(ModelError):
    """``reward_manifest.json`` does not match the model or the tokenizer beside it."""


class ScoringError(RmPluginsError, RuntimeError):
    """A provider could not score; `rows` are the samples that failed where the others could still be scored, None for all."""


class AnswerError(ScoringError):
    """A remote scorer's answer violates its protocol: a wrong count, an item twice, a number that is not finite."""


class TrainingError(RmPluginsError, FloatingPointError):
    """A training has diverged: its loss or a weight is NaN or infinite."""


class ProcessError(RmPluginsError, RuntimeError):
    """One of the processes of a training or a job does not answer or has ended, or they have different data, settings or packages."""


class UnsupportedError(RmPluginsError, TypeError):
    """This provider, or this version of a library, does not do what was asked."""


class MissingDependencyError(RmPluginsError, ImportError):
    """An optional package is needed and absent; the message says how to install it."""


def as_one_error(errors: Mapping[int, RmPluginsError]) -> RmPluginsError:
    """The error to raise for the errors of a batch, by row: the only one, or the first with the number of others."""
    distinct = list({id(errors[row]): errors[row] for row in sorted(errors)}.values())
    first = distinct[0]
    if len(distinct) == 1 and (first.rows is None or first.rows == frozenset(errors)):
        return first
    more = f" ({len(errors) - 1} more of the batch failed)" if len(distinct) > 1 else ""
    raised = (DataError if isinstance(first, DataError) else ScoringError)(f"{first}{more}", rows=sorted(errors))
    raised.provider, raised.path, raised.__cause__ = first.provider, first.path, first
    return raised


def plain_error(error: BaseException, where: str = "") -> RmPluginsError:
    """The error as its nearest class of this tree, with its message and the reward that failed: it can be sent to another process.

    Args:
        error: The error.
        where: What is put in front of its message, such as ``row 3``.
    """
    before = f"{where}: " if where else ""
    if not isinstance(error, RmPluginsError):
        return ScoringError(f"{before}The reward raised {type(error).__name__}: {error}")
    own = next(kind for kind in type(error).__mro__ if kind.__module__ == __name__)
    plain: RmPluginsError = own(f"{before}{error}")
    plain.provider, plain.path = error.provider, error.path
    return plain


def nearest_name(name: str, allowed: Iterable[str]) -> str | None:
    """The name that was probably meant: one that differs by a slip of the fingers, or the only one that continues `name`.

    >>> nearest_name("max_lenght", ["model", "max_length"]), nearest_name("eval", ["evaluate", "serve"])
    ('max_length', 'evaluate')
    >>> nearest_name("Bradley", ["bradley-terry", "dpo"])
    'bradley-terry'
    >>> nearest_name("banana", ["data", "rank"])
    """
    choices = {choice.lower(): choice for choice in sorted(allowed)}
    if nearest := get_close_matches(name.lower(), choices, n=1, cutoff=_CLOSE):
        return choices[nearest[0]]
    is_long = len(name) >= _SHORTEST_START
    continued = [choice for lower, choice in choices.items() if is_long and lower.startswith(name.lower())]
    return continued[0] if len(continued) == 1 else None


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the nearest match, if any, and everything that is allowed.

    >>> did_you_mean("max_lenght", ["model", "max_length"])
    "Did you mean 'max_length'? Allowed: max_length, model."
    >>> did_you_mean("dpo", ["ipo", "bradley-terry"])
    'Allowed: bradley-terry, ipo.'
    >>> did_you_mean("x", [])
    'No value is allowed here.'
    """
    choices = sorted(allowed)
    if not choices:
        return "No value is allowed here."
    nearest = nearest_name(name, choices)
    hint = f"Did you mean {nearest!r}? " if nearest else ""
    return f"{hint}Allowed: {', '.join(choices)}."
