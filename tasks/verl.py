"""verl's way to write a row: messages, and what names it in extra_info.

Owns reading these two. Must not know files or selections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from algorithms.types import IMAGE_MARKER


def verl_id(row: Mapping[str, Any]) -> str:
    """Name a row: verl has no ids of its own, but split and index name it within its source.

    Args:
        row: values by column.

    Returns:
        Such as "geo3k/train/17"; empty when there is nothing to name it by.
    """
    extra = row.get("extra_info")
    if not isinstance(extra, Mapping):
        return ""
    for key in ("qid", "id"):
        if extra.get(key) is not None:
            return _text(extra[key])
    if extra.get("index") is None:
        return ""
    return "/".join(_text(part) for part in (row.get("data_source"), extra.get("split"), extra["index"]) if _text(part))


def verl_question(messages: Any) -> str | None:
    """Read the one question of a list of messages.

    Args:
        messages: of a user, maybe after a system message, whose text then comes first.

    Returns:
        The text, with a marker for each picture; None when there is none.

    Raises:
        ValueError: for a conversation, or something else than messages.
    """
    if isinstance(messages, str) or messages is None:
        return messages
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError("prompt isn't a list of messages")
    roles = [message.get("role") for message in messages]
    if roles not in (["user"], ["system", "user"]):
        raise ValueError(f"prompt has the roles {', '.join(map(str, roles))}, expected one question: system (or not) and user")
    return "\n\n".join(_content(message.get("content")) for message in messages)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return "".join(IMAGE_MARKER if part.get("type") == "image" else _text(part.get("text")) for part in content)
    raise ValueError(f"a message's content isn't text but {type(content).__name__}")


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
