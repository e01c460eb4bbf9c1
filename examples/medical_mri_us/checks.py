"""Checks of the arguments that people pass in: one message style for every entry point."""

import math
from collections.abc import Collection
from numbers import Integral, Real

__all__ = ["check_choice", "check_integer", "check_number", "check_positive"]


def check_integer(name: str, value: object, minimum: int) -> int:
    """Returns `value` as an int, or says that it should be one of at least `minimum`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"'{name}' should be an integer of at least {minimum}, but is {value!r}.")
    return int(value)


def check_positive(name: str, value: object) -> float:
    """Returns `value` as a float, or says that it should be a positive finite number."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"'{name}' should be a positive number, but is {value!r}.")
    return number


def check_number(name: str, value: object, minimum: float, maximum: float | None = None) -> float:
    """Returns `value` as a float, or says between which finite numbers it should be."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (minimum <= number < math.inf and (maximum is None or number <= maximum)):
        limits = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ValueError(f"'{name}' should be a number {limits}, but is {value!r}.")
    return number


def check_choice(name: str, value: object, choices: Collection[str]) -> str:
    """Returns `value`, or lists the names that would have been valid."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"'{name}' should be one of {listed}, but is {value!r}.")
    return value
