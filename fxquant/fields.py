"""Frozen records check themselves when they are made: flags and numbers, by the types they declare.

What else a field must be, each record says itself.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import Any, TypeGuard

from fxquant.errors import ConfigError


def check_fields(record: Any) -> None:
    """Refuse a flag that is neither True nor False, and a number that is none: anything is true or
    false to Python, and 'no' is true.
    """
    for field in fields(record):
        value, name = getattr(record, field.name), f"{field.name} of {type(record).__name__}"
        if field.type == "bool" and type(value) is not bool:
            raise ConfigError(f"{name} is True or False, got {value!r}")
        if field.type == "float" and not is_number(value):
            raise ConfigError(f"{name} is a number, got {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, NaN and infinities included; True is none, nor is an integer
    that no float64 reaches.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max
