"""Functions of users, named in configuration by a dotted path.

Owns their import. Must not know what they are for.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from tasks.errors import DataError


@functools.cache
def load_function(name: str) -> Callable[..., Any]:
    """Import a function.

    Args:
        name: "package.module.function"; the working folder counts as a place to import from, after the installed ones.

    Returns:
        The function.

    Raises:
        DataError: when there is no such module or function in it, or importing it fails.
    """
    module_name, _, attribute = name.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in name.split(".")):
        raise DataError(f"'{name}' is no dotted path of a function like my_task.score")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may do anything when it is imported
        raise DataError(f"'{name}' can't be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise DataError(f"'{name}' names no function: there is none called '{attribute}' in {module_name}")
    return function  # type: ignore[no-any-return]
