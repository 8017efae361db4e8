"""The transforms that a provider, or another transform, is made with."""

from __future__ import annotations

from rm_plugins.provider import Provider, Transform

__all__ = ["transforms_in"]


def transforms_in(holder: Provider | Transform) -> dict[str, Transform]:
    """The transforms of a provider, or of a transform, by their path in its spec, in the order in which they are applied.

    They are in its public attributes; those of several members that are one model are its `member_transforms`.

    >>> from rm_plugins.transforms import Chain, Scale
    >>> list(transforms_in(Chain(transforms=[Scale(), Scale()])))
    ['transforms[0]', 'transforms[1]']
    """
    found: dict[str, Transform] = {}
    for name, value in {"member_transforms": getattr(holder, "member_transforms", None), **vars(holder)}.items():
        if isinstance(value, Transform) and not name.startswith("_"):
            found[name] = value
        elif isinstance(value, (list, tuple)) and not name.startswith("_"):
            found |= {f"{name}[{place}]": item for place, item in enumerate(value) if isinstance(item, Transform)}
    return found
