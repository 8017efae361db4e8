"""The date that a chat template writes, as one day for good."""

from __future__ import annotations

from datetime import date
from functools import lru_cache

_FUNCTION = "strftime_now"
_DIRECTIVES = (*(f"-{letter}" for letter in "dmjyHIMS"), *"aAbBcdDeFgGhHIjmMpRSTuUVwWxXyY", "%")


def writes_the_date(template: object) -> bool:
    """Whether a chat template writes the day that it is used on, as Llama 3's does."""
    return _FUNCTION in str(template)


@lru_cache(maxsize=16)  # asked for each sample
def dated(template: str, day: date) -> str:
    """A chat template for which every day is this one.

    transformers gives templates a function, and nothing else that is callable; a macro of its name at the beginning stands in for it.
    """
    replaced = "".join(f" | replace('%{directive}', '{day.strftime(f'%{directive}')}')" for directive in _DIRECTIVES)
    # The line break after the macro is its own: what follows begins a line, as it did before.
    return f"{{%- macro {_FUNCTION}(format) -%}}{{{{ format{replaced} }}}}{{%- endmacro %}}\n{template}"
