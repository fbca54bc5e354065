"""How a rule names a setting in its sentence."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from conf.schema import Config

Speaker = Callable[[str], str]
"""From a dotted key to the words "key = value"."""


def speaker(config: Config) -> Speaker:
    """Make the function that names settings, as a user would write their values.

    Args:
        config: whose values are told.

    Returns:
        From a dotted key to the words "key = value".
    """

    def say(key: str) -> str:
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if isinstance(value, Enum):
            return f"{key} = {value.value}"
        if value is None or isinstance(value, bool):
            return f"{key} = {'null' if value is None else str(value).lower()}"
        return f"{key} = {list(value) if isinstance(value, tuple) else value!r}"

    return say
