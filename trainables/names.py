"""Names that a user gives: which of them is a variant of the user's own, and what a misspelt one may have meant."""

import difflib
from collections.abc import Iterable


def is_own(variant: object) -> bool:
    """Whether a variant is the user's, `path/to/file.py:function`, and not one of `trainables.variants`."""
    return isinstance(variant, str) and variant.rpartition(":")[0].endswith(".py")


def nearest(given: str, allowed: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the allowed name nearest to the given one, or an empty string."""
    close = difflib.get_close_matches(given, list(allowed), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
