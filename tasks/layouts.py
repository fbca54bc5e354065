r"""What the columns of a data set mean, in the layouts that users have.

Owns the step from a row of named values to question, answer and pictures. Must not know files or selections.

| layout | question | answer | pictures | id, category, source |
|---|---|---|---|---|
| virl39k | question | answer, boxed | image: paths below the folder | qid, category, source |
| embedded | problem | answer | images: bytes, or {bytes, path} | id or qid, category, source; all optional |
| verl | prompt: messages | reward_model.ground_truth | images | extra_info, ability, data_source |
| plain | question or problem | answer | image or images | id or qid, category, source; all optional |
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from algorithms.types import AnswerType
from conf.schema import DataFormat
from tasks.comparison import check_answer
from tasks.errors import DataError
from tasks.extraction import unboxed
from tasks.plugins import load_function
from tasks.storage import StorageKind, Unreadable
from tasks.verl import verl_id, verl_question

LayoutName = Literal["virl39k", "embedded", "verl", "plain"]

VIRL39K_COLUMNS = ("question", "answer", "category", "source", "qid", "image")  # its pass rates are needed only to select by them
_REQUIRED: dict[LayoutName, tuple[str, ...]] = {
    "virl39k": VIRL39K_COLUMNS,
    "embedded": ("problem", "answer"),
    "verl": ("prompt", "reward_model"),
    "plain": ("question", "answer"),
}
_STORED_AS: dict[DataFormat, tuple[StorageKind, ...]] = {
    DataFormat.virl39k: ("parquet",),
    DataFormat.embedded: ("parquet",),
    DataFormat.verl: ("parquet",),
    DataFormat.jsonl: ("jsonl",),
    DataFormat.hf: ("arrow",),
}
MAX_SCORER_DATA_CHARS = 100_000  # of a row; it travels with each of the row's answers


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """A row's parts."""

    row_id: str | None  # None: it has none, and is known by its number
    question: str
    answer: str
    images: tuple[Any, ...]  # paths, bytes, or mappings with either
    category: str
    source: str
    answer_type: AnswerType


def choose_layout(columns: Sequence[str], kind: StorageKind, wanted: DataFormat, *, where: str) -> LayoutName:
    """Tell a layout by its columns.

    Args:
        columns: that there are.
        kind: how the files are stored.
        wanted: the format that the configuration names, or auto.
        where: the path, for messages.

    Returns:
        The layout.

    Raises:
        DataError: when the files aren't in the wanted format, or in none that is known.
    """
    if wanted is not DataFormat.auto and kind not in _STORED_AS[wanted]:
        raise DataError(f"data.format = {wanted.value} is stored as {_STORED_AS[wanted][0]}, but {where} is {kind}")
    named: LayoutName | None = next((name for name in _REQUIRED if name == wanted.value), None)
    for layout, required in _REQUIRED.items():
        missing = [name for name in required if name not in columns]
        if named == layout and missing:
            raise DataError(f"{where}: missing columns {', '.join(missing)} of the format {layout}; found {', '.join(columns)}")
        if not missing and named in (None, layout):
            return layout
    needs = "; ".join(f"{layout} {', '.join(required)}" for layout, required in _REQUIRED.items())
    raise DataError(f"{where}: in no known layout. Needed are the columns of one of them: {needs}; found {', '.join(columns)}")


def read_fields(row: Mapping[str, Any], layout: LayoutName, *, scorer: str = "") -> Fields:
    """Take a row apart.

    Args:
        row: values by column.
        layout: of the data set.
        scorer: of the answers, by its dotted path; empty: the row's own answer_type, or a free one.

    Returns:
        Its parts; pictures are not looked at yet.

    Raises:
        ValueError: with the reason why the row can't be used.
    """
    for name, value in row.items():
        if isinstance(value, Unreadable):
            raise ValueError(f"unreadable {name}" if name else value.reason)
    parts = _verl_parts(row) if layout == "verl" else _plain_parts(row)
    if layout == "virl39k" and not text_of(row["qid"]):
        raise ValueError("missing qid")
    question, answer = (_required(parts[name], name) for name in ("question", "answer"))
    answer = unboxed(answer)
    answer_type = _scored(row, scorer) if scorer else _answer_type(row.get("answer_type"))
    check_answer(answer, answer_type)
    return Fields(
        row_id=text_of(parts["id"]) or None,
        question=question,
        answer=answer,
        images=_images(parts["images"], parts["images_name"]),
        category=text_of(parts["category"]),
        source=text_of(parts["source"]),
        answer_type=answer_type,
    )


def group_of(row: Mapping[str, Any], layout: LayoutName) -> tuple[str, str, bool]:
    """Look at what selections ask of every row, bad ones included.

    Args:
        row: values by column.
        layout: of the data set.

    Returns:
        Category, source, and whether it has pictures.
    """
    category, source = ("ability", "data_source") if layout == "verl" else ("category", "source")
    images = row.get("images") if row.get("image") is None else row["image"]
    return text_of(row.get(category)), text_of(row.get(source)), isinstance(images, Unreadable) or bool(images)


def row_id_of(row: Mapping[str, Any], layout: LayoutName) -> str:
    """Name a row, a bad one too.

    Args:
        row: values by column.
        layout: of the data set.

    Returns:
        Its id; empty when it has none.
    """
    return text_of(verl_id(row)) if layout == "verl" else text_of(row.get("qid")) or text_of(row.get("id"))


def lookup(row: Mapping[str, Any], column: str) -> Any:
    """Find a value, also within a struct.

    Args:
        row: values by column.
        column: such as "PassRate_7BBase", or "extra_info.pass_rate".

    Returns:
        The value; None when there is none.
    """
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def pass_rate_of(row: Mapping[str, Any], column: str) -> float | None:
    """Read a pass rate.

    Args:
        row: values by column.
        column: that holds it.

    Returns:
        In [0, 1]; None where it is missing: null, not a number, or negative as in ViRL39K's -1.
    """
    try:
        value = float(lookup(row, column))
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and 0.0 <= value <= 1.0 else None


def text_of(value: Any) -> str:
    """A value as stripped text.

    Args:
        value: of a row.

    Returns:
        Empty for a missing or unreadable one.
    """
    return "" if value is None or isinstance(value, Unreadable) else str(value).strip()


def _plain_parts(row: Mapping[str, Any]) -> dict[str, Any]:
    images = next((name for name in ("image", "images") if row.get(name) is not None), "image")
    return {
        "id": row.get("qid") if row.get("qid") is not None else row.get("id"),
        "question": row.get("question") if row.get("question") is not None else row.get("problem"),
        "answer": row.get("answer"),
        "images": row.get(images),
        "images_name": images,
        "category": row.get("category"),
        "source": row.get("source"),
    }


def _verl_parts(row: Mapping[str, Any]) -> dict[str, Any]:
    reward = row.get("reward_model")
    return {
        "id": verl_id(row),
        "question": verl_question(row.get("prompt")),
        "answer": reward.get("ground_truth") if isinstance(reward, Mapping) else None,
        "images": row.get("images"),
        "images_name": "images",
        "category": row.get("ability"),
        "source": row.get("data_source"),
    }


def _required(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise ValueError(f"{name} isn't text but {type(value).__name__}")
    text = "" if value is None else str(value)
    if not text.strip():
        raise ValueError(f"missing {name}")
    return text


def _images(value: Any, name: str) -> tuple[Any, ...]:
    """A list of pictures; a single one counts as a list of one."""
    if value is None:
        return ()
    images = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(image, str | bytes | Mapping) and image for image in images):
        raise ValueError(f"{name} isn't a list of paths or pictures")
    return tuple(images)


def _answer_type(value: Any) -> AnswerType:
    """From a column answer_type: {kind, options, unit, ...}, as a mapping or as JSON."""
    if value is None:
        return AnswerType()
    try:
        found = json.loads(value) if isinstance(value, str) else value
        fields = {name: entry for name, entry in found.items() if entry is not None}
        if "options" in fields:
            fields["options"] = tuple(str(option) for option in fields["options"])
        answer_type = AnswerType(**fields)
    except (ValueError, TypeError, AttributeError) as error:
        names = ", ".join(field.name for field in dataclasses.fields(AnswerType))
        raise ValueError(f"answer_type isn't a mapping of {names}: {error}") from error
    if answer_type.kind not in ("free", "choice", "number"):  # code to run is named by the configuration, never by data
        raise ValueError(f"answer_type has the kind {answer_type.kind!r}, expected free, choice or number")
    return answer_type


def _scored(row: Mapping[str, Any], scorer: str) -> AnswerType:
    """The row itself, without its pictures, is what the scorer gets."""
    data = json.dumps({name: value for name, value in row.items() if name not in ("image", "images")}, default=str)
    if len(data) > MAX_SCORER_DATA_CHARS:
        raise ValueError(f"the row has {len(data)} characters for the scorer, more than {MAX_SCORER_DATA_CHARS}")
    return AnswerType(kind="scored", scorer=scorer, data=data)


def reader_rows(name: str, path: str) -> list[dict[str, Any]]:
    """Have a user's reader make rows.

    Args:
        name: of the function, by its dotted path.
        path: what it is called with.

    Returns:
        The rows that it yields or returns.

    Raises:
        DataError: when there is no such function, it fails, or it makes something else than mappings.
    """
    function = load_function(name)
    try:
        return [dict(row) for row in function(path)]
    except Exception as error:  # a user's function may do anything
        raise DataError(f"data.reader = {name}, data path {path!r}: {type(error).__name__}: {error}") from error
