"""The two ways in which data can be wrong: as a whole, or one prompt of it."""

from __future__ import annotations


class DataError(ValueError):
    """A data folder that can't be used at all; the message names its path."""


class BadPromptError(ValueError):
    """One prompt that can't be used; the message is the reason, fit for a count by reason."""
