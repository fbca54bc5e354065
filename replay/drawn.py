"""Drawn rows on their way into the tables that the learner's ranks get.

Owns what is known of each draw and the copying of rows. Must not know modes, groups, the order of events or Ray.

A draw is made while nothing else changes; its rows, which never change, are copied out afterwards, beside other calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from algorithms.schema import SAMPLE_FIELDS, SAMPLE_SCHEMA, attach_images
from replay.batches import deal, occurrences
from replay.images import image_hashes
from replay.plans import Draw
from replay.storage import RowSelection
from replay.table import Table
from replay.wide import Take


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The rows of one training step."""

    shards: list[pa.Table]  # one per learner rank, of SAMPLE_SCHEMA; all empty when nothing could be drawn
    stats: dict[str, float]  # by metric name; "replay/empty" is 1 when there's nothing to train on
    keys: NDArray[np.int64]  # [n] of the rows, in the order of the draw
    consumed: list[pa.RecordBatch]  # all trajectories of the groups that the step consumed, turn by turn


@dataclass(frozen=True, kw_only=True)
class DrawnShard:
    """A rank's rows, found but not copied yet."""

    rows: RowSelection | None  # None: the rank has none
    advantages: NDArray[np.float32] | None  # [K] of now, where they aren't the rows' own any more
    order: NDArray[np.int64]  # [K] which draw each of the rows is
    images: Mapping[str, bytes]  # by SHA-256, those that travel with the rows

    def read(self, draws: dict[str, NDArray], take: Take | None = None) -> pa.Table:
        """Copy the rows out and put what is known of their draws beside them.

        Args:
            draws: [n] values for every one of SAMPLE_FIELDS, of all draws.
            take: see WideSelection.read.

        Returns:
            A table of SAMPLE_SCHEMA.
        """
        if self.rows is None:
            return SAMPLE_SCHEMA.empty_table()
        columns = self.rows.read(take).columns
        if self.advantages is not None:
            columns[SAMPLE_SCHEMA.get_field_index("advantage")] = pa.array(self.advantages)
        drawn = [pa.array(draws[field.name][self.order], type=field.type) for field in SAMPLE_FIELDS]
        table = pa.Table.from_arrays([*columns, *drawn], schema=SAMPLE_SCHEMA)
        return attach_images(table, self.images) if self.images else table


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A training step's draws, made and counted; what is left is to copy the rows, in any thread and at any time."""

    shards: list[DrawnShard]
    draws: dict[str, NDArray]  # [n] values for every one of SAMPLE_FIELDS
    stats: dict[str, float]
    consumed: list[pa.RecordBatch]
    num_bytes: int  # of the rows, about

    def read(self, take: Take | None = None) -> Sample:
        """Copy the rows out.

        Args:
            take: see WideSelection.read.

        Returns:
            The rows and their figures.
        """
        shards = [shard.read(self.draws, take) for shard in self.shards]
        return Sample(shards=shards, stats=self.stats, keys=self.draws["key"], consumed=self.consumed)


def count_draws(table: Table, draw: Draw, *, policy_version: int, num_updates: int) -> dict[str, NDArray]:
    """Count draws on their rows.

    Args:
        table: of the rows.
        draw: n draws.
        policy_version: of the learner.
        num_updates: which the draws are for, in their order.

    Returns:
        [n] values for every one of SAMPLE_FIELDS.
    """
    column, places = table.storage.column, draw.places
    draws = {
        "key": column("key")[places],
        "probability": draw.probabilities,
        "table_size": draw.table_sizes,
        "age": policy_version - column("version")[places],
        "times_sampled": column("times_sampled")[places] + occurrences(places),
        "fresh": draw.fresh,
        "update": np.arange(len(places)) * num_updates // max(len(places), 1),
    }
    table.use(places)
    return draws


def deal_rows(table: Table, places: NDArray[np.int64], updates: NDArray[np.int64], *, num_shards: int) -> list[DrawnShard]:
    """Find each rank's rows.

    Args:
        table: of the rows.
        places: [n] of the draws.
        updates: [n] which update each of them belongs to, rising.
        num_shards: D >= 1, ranks of the learner.

    Returns:
        One a rank.
    """
    prompts: list[str] = []
    if num_shards > 1:
        prompts = table.storage.gather(places, ["prompt_id"]).column("prompt_id").to_pylist()
    shards = []
    for order in deal(table.storage.column("tokens")[places], prompts, updates, num_shards=num_shards):
        mine = places[order]
        images = table.images.select(image_hashes(table.storage.gather(mine, ["images"]))) if len(table.images) else {}
        rows = table.storage.select(mine) if len(mine) else None
        shards.append(DrawnShard(rows=rows, advantages=table.advantages(mine), order=order, images=images))
    return shards
