"""The configuration reference, written from the schema: every key with its type, its default and its comment.

Owns that page's Markdown, which the documentation's build takes in; ``python -m conf.reference`` prints it. Must not know Ray, torch or the
engines.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import tokenize
import types
import typing
from enum import Enum

from conf.schema import Config

INTRODUCTION = """# Configuration

Every key of a run, with its default. Written from `conf/schema.py`. A configuration file holds only
what differs, builds on another one by a line `base: other.yaml`, and is overridden by `key=value` words on the command line:

```sh
rethinker train my.yaml replay.mode=fresh learner.num_ranks=4
rethinker config my.yaml --check     # every key with its value, and what doesn't fit
```

A key that only one section has may stand without its section. An unknown key, a wrong type or an impossible combination is told in one
sentence before anything starts, with exit code 2.
"""


def reference() -> str:
    """Write the reference.

    Returns:
        Markdown, one table a section.
    """
    hints = typing.get_type_hints(Config)
    sections = [_section(field.name, hints[field.name]) for field in dataclasses.fields(Config)]
    return "\n".join([INTRODUCTION, *sections])


def _section(name: str, schema: type) -> str:
    comments, hints, defaults = _comments(schema), typing.get_type_hints(schema), schema()
    rows = []
    for key in (field.name for field in dataclasses.fields(schema)):
        cells = f"`{name}.{key}`", _type(hints[key]), f"`{_shown(getattr(defaults, key))}`", comments.get(key, "")
        rows.append(f"| {' | '.join(cells)} |")
    choices = [_choices(hint) for hint in dict.fromkeys(hints.values()) if inspect.isclass(hint) and issubclass(hint, Enum)]
    title = inspect.getdoc(schema) or ""
    return "\n".join([f"## {name}", "", title, "", "| key | type | default | |", "|---|---|---|---|", *rows, "", *choices])


def _choices(kind: type[Enum]) -> str:
    """What the words of a choice mean, where the schema says so."""
    comments = _comments(kind)
    lines = [f"- `{member.value}`: {comments[member.name]}" for member in kind if member.name in comments]
    return "\n".join([f"**{(inspect.getdoc(kind) or kind.__name__).rstrip('.')}**", "", *lines, ""]) if lines else ""


def _comments(schema: type) -> dict[str, str]:
    """The comment behind each assignment of a class."""
    found: dict[str, str] = {}
    line_start = ""
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(schema)).readline):
        if token.type in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT):
            line_start = ""
        elif token.type == tokenize.NAME and not line_start:
            line_start = token.string
        elif token.type == tokenize.COMMENT and line_start:
            found[line_start] = token.string.lstrip("# ").replace("|", "\\|")
    return found


def _type(hint: typing.Any) -> str:
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return " \\| ".join(f"`{member.value}`" for member in hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) in (list, tuple):
        return f"list of {_type(typing.get_args(hint)[0])}"
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict:
        return "mapping"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true \\| false"}.get(getattr(hint, "__name__", ""), str(hint))


def _shown(value: typing.Any) -> str:
    """A value as YAML would have it."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, str):
        return value.replace("\n", "\\n") or '""'
    return (
        json.dumps(value)
        if isinstance(value, bool | None | list | tuple | dict)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


if __name__ == "__main__":
    print(reference(), end="")
