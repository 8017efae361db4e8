"""The loss and the regularizers that a configuration names, and errors that name them when they return what cannot be trained on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rm_plugins.errors import RmPluginsError, SpecError, UnsupportedError
from rm_plugins.imported_function import imported
from rm_plugins.losses import Loss, RewardBatch
from rm_plugins.losses.loss import FunctionLoss
from rm_plugins.spec import component


def chosen_loss(setting: Any) -> Loss:
    """The loss that ``RewardConfig(loss=...)`` names.

    Args:
        setting: A registered name, ``module:Name`` of a `Loss` subclass or of a function of a batch, a mapping with one of these under
            ``name`` and the arguments of the loss, or a loss.

    Raises:
        SpecError: It cannot be imported or made, or is not a loss.
        UnknownNameError: No loss of that name is registered.
    """
    arguments: dict[str, Any] = dict(setting) if isinstance(setting, Mapping) else {}
    name = arguments.pop("name", None) if isinstance(setting, Mapping) else setting
    if isinstance(name, str) and ":" in name:
        made = _imported("loss", name, arguments)
    elif isinstance(setting, type):
        made = _made("loss", setting, arguments)
    else:
        made = component("loss", setting)
    return made if isinstance(made, Loss) else FunctionLoss(made)


def chosen_regularizer(name: str) -> Callable[[RewardBatch], torch.Tensor]:
    """The regularizer of a registered name, or what ``module:Name`` names.

    Raises:
        SpecError: It cannot be imported or made.
        UnknownNameError: No regularizer of that name is registered.
    """
    made = _imported("regularizer", name, {}) if ":" in name else component("regularizer", name)
    return made  # type: ignore[no-any-return]  # anything callable


def _imported(kind: str, name: str, arguments: Mapping[str, Any]) -> Any:
    try:
        named = imported(name)
    except SpecError as error:
        raise SpecError(f"{kind}: {error.message}") from error.__cause__
    if isinstance(named, type):
        return _made(kind, named, arguments)
    if arguments:
        raise SpecError(
            f"{kind}: {name} is a function, which takes only the batch, not {', '.join(map(repr, arguments))}. Name a "
            "subclass of rm_plugins.losses.Loss, whose constructor takes them."
        )
    return named


def _made(kind: str, cls: type[Any], arguments: Mapping[str, Any]) -> Any:
    if not any("__call__" in vars(one) for one in cls.__mro__):
        raise SpecError(
            f"{kind}: the class {cls.__qualname__} cannot be called with a batch. Make it a rm_plugins.losses.Loss."
        )
    try:
        return cls(**arguments)
    except RmPluginsError:
        raise
    except Exception as error:  # a constructor may raise anything
        raise SpecError(f"{kind}: {described(cls)} could not be made: {type(error).__name__}: {error}") from error


def described(term: Any) -> str:
    """A loss or regularizer as messages name it: its name, and of one that is not built in its class or function and its file."""
    code = term.function if isinstance(term, FunctionLoss) else term
    code = code if isinstance(code, type) or inspect.isroutine(code) else type(code)
    name = str(getattr(term, "name", code.__qualname__))
    if code.__module__.startswith("rm_plugins."):
        return repr(name)
    try:
        file = Path(inspect.getsourcefile(code) or "").name
        where = f", {file}, line {inspect.getsourcelines(code)[1]}" if file else ""
    except (OSError, TypeError):  # made at a prompt or in C
        where = ""
    return f"{name!r} ({code.__module__}:{code.__qualname__}{where})"


def value_of(
    kind: str, term: Callable[[RewardBatch], torch.Tensor], batch: RewardBatch, *, learns: bool = True
) -> torch.Tensor:
    """What a loss or regularizer gives for a batch.

    Args:
        kind: ``loss`` or ``regularizer``, for messages.
        term: The loss or regularizer.
        batch: The batch.
        learns: Whether the value must have a gradient where the rewards have one.

    Raises:
        UnsupportedError: It raised, or its value is not a scalar tensor, or has no gradient.
    """
    try:
        value: Any = term(batch)
    except (RmPluginsError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # anybody's code may raise anything
        raise UnsupportedError(
            f"The {kind} {described(term)} raised {type(error).__name__}: {error}. It was given a RewardBatch with rewards of shape "
            f"{list(batch.rewards.shape)} and {len(batch.pairs)} pairs."
        ) from error
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        given = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"{value!r:.80}"
        raise UnsupportedError(
            f"The {kind} {described(term)} returned {given}. It must return a tensor with one number, such as the mean over the pairs."
        )
    if learns and batch.rewards.requires_grad and not value.requires_grad and bool(value != 0):
        raise UnsupportedError(
            f"The {kind} {described(term)} returned a number without a gradient, so the model cannot learn from it. Compute it from "
            "batch.rewards without detach(), item(), numpy() or torch.no_grad()."
        )
    return value.reshape(())
