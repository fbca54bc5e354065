"""The configuration reference: every key of every shipped section, with the schema's words."""

import dataclasses
import typing

from conf.reference import reference
from conf.schema import Config


def test_every_key_has_a_row_with_its_default() -> None:
    page = reference()
    hints = typing.get_type_hints(Config)
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(hints[section.name]):
            assert page.count(f"| `{section.name}.{field.name}` |") == 1
    assert "| `replay.max_trajectories` | integer | `65536` |" in page


def test_comments_choices_and_nulls_are_told() -> None:
    page = reference()
    assert "| `rollout.top_k` | integer | `-1` | -1: off |" in page
    assert "- `filter`: the step's trajectories with a learning signal, repeated to fill the batch" in page
    assert "| `algorithm.batch_size` | integer or null | `null` | trajectories per optimizer update; null:" in page
    for row in (line for line in page.splitlines() if line.startswith("| `")):
        assert row.replace("\\|", "").count("|") == 5, row  # a bar in a comment must not end the table's cell


def test_no_key_is_left_unexplained() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []
