"""Every error that rm-plugins raises on purpose.

Each error also inherits the built-in that fits, so that ``except ValueError`` keeps working::

    RmPluginsError
    ├── PluginError
    │   ├── DuplicateNameError      (ValueError)   one name, two classes
    │   ├── BrokenPluginError       (ImportError)  a plug-in that could not be loaded
    │   └── UnknownNameError        (LookupError)  a name that nobody registered
    ├── SpecError                   (ValueError)   a spec that cannot become a provider
    ├── DataError                   (ValueError)   a row, a sample or a file that cannot be read
    ├── OutputError                 (OSError)      a file or folder that cannot be written
    ├── ModelError                  (ValueError)   a folder that is no usable reward model
    │   └── ManifestError                          a manifest that does not fit the model beside it
    ├── ScoringError                (RuntimeError) a provider that could not score
    │   └── AnswerError                            a remote scorer whose answer breaks its protocol
    ├── TrainingError               (FloatingPointError) a training whose loss or weights are no numbers any more
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
    "RmPluginsError",
    "ScoringError",
    "SpecError",
    "TrainingError",
    "UnknownNameError",
    "UnsupportedError",
    "as_one_error",
    "did_you_mean",
]


class RmPluginsError(Exception):
    """The root of the tree: catch it to catch everything that rm-plugins raises on purpose.

    Args:
        message: What happened, to which component, what is allowed, what to do.
        rows: The positions of the batch that the error is about; None where it is about all, or about none in particular.

    Attributes:
        provider: The label of the reward that failed; None where none did.
        path: Its place in the spec that it was loaded from; None where there is none.
    """

    provider: str | None = None
    path: str | None = None

    def __init__(self, message: str = "", rows: Collection[int] | None = None) -> None:
        super().__init__(*([redacted(message)] if message else []))  # also what a server said, who may quote a key
        self.rows = None if rows is None else frozenset(int(row) for row in rows)

    @property
    def by_row(self) -> dict[int, "RmPluginsError"]:
        """The error at each of its rows."""
        return dict.fromkeys(sorted(self.rows or ()), self)

    def caused_by(self, error: BaseException) -> Self:
        """This error, as ``raise ... from error`` would have it, for those that are returned and not raised."""
        self.__cause__ = error
        return self

    def __str__(self) -> str:
        # Some built-ins in the tree (LookupError's children) would quote the message.
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
        key: The key of the component's own spec that is wrong, such as ``weights``; the rest of the path is put before it.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.message = redacted(message)
        self.key = key

    def inside(self, path: str) -> "SpecError":
        """The same of a component that stands at `path` in another one's spec."""
        return SpecError(self.message, f"{path}.{self.key}" if self.key else path)

    def __reduce__(self) -> tuple[type["SpecError"], tuple[str, str]]:
        return type(self), (self.message, self.key)


class DataError(RmPluginsError, ValueError):
    """A sample, a row or a file does not have the form that was asked for; `rows` are those of a batch that have not."""


class OutputError(RmPluginsError, OSError):
    """A file or folder cannot be written: the path is of something else, or the system refuses it."""


class ModelError(RmPluginsError, ValueError):
    """A folder or hub id does not hold a usable reward model."""


class ManifestError(ModelError):
    """``reward_manifest.json`` does not fit the model or the tokenizer beside it."""


class ScoringError(RmPluginsError, RuntimeError):
    """A provider could not score; `rows` are those that failed, where the others could still be scored, None for all."""


class AnswerError(ScoringError):
    """A remote scorer answered something that its protocol does not allow: another count, an item twice, no finite number."""


class TrainingError(RmPluginsError, FloatingPointError):
    """A training has diverged: its loss or a weight is no number."""


class UnsupportedError(RmPluginsError, TypeError):
    """This provider, or this version of a library, does not do what was asked."""


class MissingDependencyError(RmPluginsError, ImportError):
    """An optional package is needed and absent; the message says how to install it."""


def as_one_error(errors: Mapping[int, RmPluginsError]) -> RmPluginsError:
    """What to raise for the errors of a batch, by row: the one error, or one that says of the first how many others there are."""
    distinct = list({id(errors[row]): errors[row] for row in sorted(errors)}.values())
    first = distinct[0]
    if len(distinct) == 1 and (first.rows is None or first.rows == frozenset(errors)):
        return first
    more = f" ({len(errors) - 1} more of the batch failed)" if len(distinct) > 1 else ""
    raised = (DataError if isinstance(first, DataError) else ScoringError)(f"{first}{more}", rows=sorted(errors))
    raised.provider, raised.path, raised.__cause__ = first.provider, first.path, first
    return raised


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the nearest match, if any, and everything that is allowed.

    >>> did_you_mean("max_lenght", ["model", "max_length"])
    "Did you mean 'max_length'? Allowed: max_length, model."
    >>> did_you_mean("dpo", ["ipo", "bradley-terry"])
    'Allowed: bradley-terry, ipo.'
    >>> did_you_mean("x", [])
    'Nothing is allowed here.'
    """
    choices = sorted(allowed)
    if not choices:
        return "Nothing is allowed here."
    known = {choice.lower(): choice for choice in choices}
    nearest = get_close_matches(name.lower(), known, n=1, cutoff=0.75)
    if not nearest and len(name) > 2:  # a part of a name, such as bradley
        nearest = [choice for choice in known if choice.startswith(name.lower())][:1]
    hint = f"Did you mean {known[nearest[0]]!r}? " if nearest else ""
    return f"{hint}Allowed: {', '.join(choices)}."
