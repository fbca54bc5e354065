"""The rules between the settings of the data.

Owns what a data selection may be. Must not know files: whether the paths exist is asked elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from conf.schema import Config, DataFormat

GENERATED_DATA = ("", "quickstart")
INFINITY = float("inf")


def data_rules(config: Config, at: Callable[[str], str]) -> Iterator[str]:
    """Say what is wrong with the data's settings.

    Args:
        config: of a run.
        at: a function from a dotted key to the words "key = value".

    Yields:
        A sentence for each broken rule.
    """
    data = config.data
    path, test_path = Path(data.path), Path(data.test_path)
    if data.generate not in GENERATED_DATA:
        yield f"{at('data.generate')} names no data that can be built, expected 'quickstart' or nothing."
    if not data.path:
        yield f"{at('data.path')} names no training data, expected a folder or file (docs/data.md)."
    for keep, drop in (("categories", "exclude_categories"), ("sources", "exclude_sources")):
        if both := sorted(set(getattr(data, keep)) & set(getattr(data, drop))):
            yield f"{at(f'data.{keep}')} and {at(f'data.{drop}')} both name {', '.join(both)}."
    yield from _selection(config, at)
    if config.evaluation.every_steps and not data.test_path:
        yield f"{at('evaluation.every_steps')} needs held-out questions, but {at('data.test_path')}."
    if data.test_path and path == test_path:
        yield f"{at('data.path')} and {at('data.test_path')} are one folder: the accuracy would not be held-out."
    if data.generate and not (path.parent == test_path.parent and (path.name, test_path.name) == ("train", "test")):
        yield f"{at('data.generate')} writes the folders train and test side by side, but {at('data.path')} and {at('data.test_path')}."


def _selection(config: Config, at: Callable[[str], str]) -> Iterator[str]:
    data = config.data
    low, high = data.min_pass_rate, data.max_pass_rate
    for key, bound in (("data.min_pass_rate", low), ("data.max_pass_rate", high)):
        if bound is not None and not 0 <= bound <= 1:
            yield f"{at(key)} is out of range, expected 0 to 1."
        if bound is not None and not data.pass_rate_column:
            yield f"{at(key)} has no column to look at, while {at('data.pass_rate_column')}."
    if low is not None and high is not None and low > high:
        yield f"{at('data.min_pass_rate')} is above {at('data.max_pass_rate')}: nothing would be kept."
    if data.reader and data.format is not DataFormat.auto:
        yield f"{at('data.reader')} makes the rows by itself, but {at('data.format')}; leave data.format=auto."
    if data.generate and (data.reader or data.scorer):
        yield f"{at('data.generate')} brings its own rows and answers, but {at('data.reader')} and {at('data.scorer')}."
    for key in ("data.reader", "data.scorer"):
        name = getattr(data, key.partition(".")[2])
        if name and (name.count(".") < 1 or not all(part.isidentifier() for part in name.split("."))):
            yield f"{at(key)} is no dotted path of a function, expected one like my_task.rows."
    for name, weight in data.category_weights.items():
        if not 0 < weight < INFINITY:
            yield f"data.category_weights gives {name!r} the weight {weight!r}, expected more than 0; exclude_categories leaves it out."
    if both := sorted(set(data.category_weights) & set(data.exclude_categories)):
        yield f"data.category_weights and {at('data.exclude_categories')} both name {', '.join(both)}."
    if data.categories and (others := sorted(set(data.category_weights) - set(data.categories))):
        yield f"data.category_weights names {', '.join(others)}, but {at('data.categories')} keeps none of it."
