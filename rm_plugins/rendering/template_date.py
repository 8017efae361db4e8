"""Fixes the date that a chat template writes."""

from __future__ import annotations

from datetime import date
from functools import lru_cache

_FUNCTION = "strftime_now"
_DIRECTIVES = (*(f"-{letter}" for letter in "dmjyHIMS"), *"aAbBcdDeFgGhHIjmMpRSTuUVwWxXyY", "%")


def writes_the_date(template: object) -> bool:
    """Whether a chat template writes the current date, like Llama 3's."""
    return _FUNCTION in str(template)


@lru_cache(maxsize=16)  # called for each sample
def dated(template: str, day: date) -> str:
    """A chat template that always writes this date.

    A macro at the beginning of the template replaces the date function that transformers passes to templates.
    """
    replaced = "".join(f" | replace('%{directive}', '{day.strftime(f'%{directive}')}')" for directive in _DIRECTIVES)
    # The line break belongs to the macro, so that the original template still begins at the start of a line.
    return f"{{%- macro {_FUNCTION}(format) -%}}{{{{ format{replaced} }}}}{{%- endmacro %}}\n{template}"
