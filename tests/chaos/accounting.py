"""What became of every trajectory that replay has acknowledged. Values and files only, no Ray.

The journal is the list of what was acknowledged: replay writes it before it answers. The archive is the list of what steps consumed. Both
are read after the fact, so nothing in the run has to be trusted to count itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import xxhash

from replay.journal import OPEN, SEALED, JournalError, Record, numbered_path, read_segment, segments
from replay.row_records import RecordReader, name_of, rows_in
from replay.snapshot import read_snapshot

CONTENT = ("trajectory_id", "response_token_ids", "behavior_logprobs", "version_spans", "reward", "advantage")


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A group that replay has acknowledged."""

    turn: int
    contents: Mapping[str, int]  # digest of each trajectory, by its id


@dataclass
class Acknowledged:
    """All that replay ever acknowledged in a run, over the processes of its driver."""

    groups: dict[str, Accepted] = field(default_factory=dict)
    taken_back: int = 0  # trajectories of groups that a resumed driver sampled again, because it went on from before them

    def read_journal(self, folder: Path) -> None:
        """Take in a journal, which an actor may be writing.

        Args:
            folder: of the journal; the end of its last segment may be torn.
        """
        for number in segments(folder):
            copy = folder.parent / ".journal-copy"  # a torn end is cut off, which only the writer may do to its file
            if not any(_copied(numbered_path(folder, kind, number), copy) for kind in (OPEN, SEALED)):
                continue  # compacted away just now; what it held was read before, or all of its rows have left
            reader = RecordReader(folder)  # anew: rows are written before the command that refers to them
            for record in read_segment(copy, last=True):
                if record.meta["kind"] == "insert" and (holding := _holding_rows_of(record, reader, folder)) is not None:
                    self._accept(rows_in(holding), record.meta["turns"])
            copy.unlink()

    def driver_resumed(self, first_turn: int, checkpoint: Path) -> None:
        """A new driver goes on from a checkpoint: turns from there on are rolled out and acknowledged again, but for those that it holds.

        Args:
            first_turn: that no step of the checkpoint has consumed.
            checkpoint: its folder, with replay's snapshot of the groups that wait.
        """
        saved = read_snapshot(checkpoint / "replay")
        for rows in saved.waiting:
            self._accept(rows, saved.state["turns"])
        held = saved.state["turns"]
        again = [name for name, group in self.groups.items() if group.turn >= first_turn and name not in held]
        self.taken_back += sum(len(self.groups.pop(name).contents) for name in again)

    def write(self, path: Path) -> None:
        """Keep it in a file."""
        groups = {name: [group.turn, dict(group.contents)] for name, group in self.groups.items()}
        path.write_text(json.dumps({"taken_back": self.taken_back, "groups": groups}))

    @classmethod
    def read(cls, path: Path) -> Acknowledged:
        """The inverse of write."""
        kept = json.loads(path.read_text())
        groups = {name: Accepted(turn=turn, contents=contents) for name, (turn, contents) in kept["groups"].items()}
        return cls(groups=groups, taken_back=kept["taken_back"])

    def _accept(self, rows: pa.RecordBatch, turns: Mapping[str, int]) -> None:
        found: dict[str, dict[str, int]] = {}
        for group_id, trajectory_id, digest in _digests(rows):
            found.setdefault(group_id, {})[trajectory_id] = digest
        for group_id, contents in found.items():
            self.groups.setdefault(group_id, Accepted(turn=turns[group_id], contents=contents))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The bottom line of a run."""

    steps: int
    acknowledged: int  # trajectories
    consumed: int
    waiting: int  # acknowledged, for steps to come
    lost: tuple[str, ...]  # acknowledged for a step that was done, and not consumed as they were acknowledged
    duplicated: tuple[str, ...]  # consumed more than once
    lost_in: tuple[int, ...] = ()  # the step that each of those lost was due in
    duplicated_in: tuple[int, ...] = ()  # the last step that consumed each of those that were consumed more than once
    problems: tuple[str, ...]  # steps that are missing, double or short

    @property
    def clean(self) -> bool:
        """Whether everything is where it belongs."""
        return not (self.lost or self.duplicated or self.problems)


def judge(run_folder: Path, acknowledged: Acknowledged, *, prompts_per_step: int) -> Verdict:
    """Compare what was acknowledged with what steps consumed.

    Args:
        run_folder: with metrics.jsonl and trajectories/.
        acknowledged: over the whole run.
        prompts_per_step: groups that a step consumes.

    Returns:
        What was lost and doubled.
    """
    steps = [json.loads(line)["step"] for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    last = max(steps, default=0)
    problems = [f"step {step} stands {count} times in metrics.jsonl" for step, count in Counter(steps).items() if count > 1]
    problems += [f"step {step} is missing in metrics.jsonl" for step in sorted(set(range(1, last + 1)) - set(steps))]
    times: Counter[str] = Counter()
    contents: dict[str, int] = {}
    consumed_in: dict[str, int] = {}
    for step in range(1, last + 1):
        rows = _rows_of(run_folder / "trajectories" / f"step-{step:06d}.arrow")
        if rows is None:
            problems.append(f"step {step} has no trajectories")
            continue
        digests = list(_digests(rows))
        times.update(trajectory_id for _, trajectory_id, _ in digests)
        contents |= {trajectory_id: digest for _, trajectory_id, digest in digests}
        consumed_in |= {trajectory_id: step for _, trajectory_id, _ in digests}
        groups = {group_id for group_id, _, _ in digests}
        turns = {acknowledged.groups[name].turn for name in groups if name in acknowledged.groups}
        if turns != set(range((step - 1) * prompts_per_step, step * prompts_per_step)):
            problems.append(f"step {step} consumed the turns {sorted(turns)} in {len(groups)} groups")
    due = {
        trajectory_id: (digest, group.turn // prompts_per_step + 1)
        for group in acknowledged.groups.values()
        if group.turn < last * prompts_per_step
        for trajectory_id, digest in group.contents.items()
    }
    lost = {name: step for name, (digest, step) in due.items() if contents.get(name) != digest}
    duplicated = {name: consumed_in[name] for name, count in times.items() if count > 1}
    total = sum(len(group.contents) for group in acknowledged.groups.values())
    return Verdict(
        steps=last,
        acknowledged=total,
        consumed=len(times),
        waiting=total - len(due),
        lost=tuple(lost),
        duplicated=tuple(duplicated),
        lost_in=tuple(lost.values()),
        duplicated_in=tuple(duplicated.values()),
        problems=tuple(problems),
    )


def _rows_of(path: Path) -> pa.RecordBatch | None:
    if not path.exists():
        return None
    with pa.ipc.open_file(path) as reader:
        return pa.concat_batches([reader.get_batch(i) for i in range(reader.num_record_batches)])


def _holding_rows_of(insert: Record, reader: RecordReader, folder: Path) -> Record | None:
    """The record with an insert's rows; None: all of them have left, and their file was deleted or is written over under another name."""
    try:
        found = reader.holding_rows_of(insert)
    except FileNotFoundError:  # just now
        return None
    if isinstance(found, str):
        if (folder / name_of(insert.meta["at"][0])).exists():
            raise JournalError(found)
        return None
    return found


def _copied(path: Path, copy: Path) -> bool:
    """Copy a file that its owner may rename or delete; False when it isn't there any more."""
    try:
        copy.write_bytes(path.read_bytes())
    except FileNotFoundError:
        return False
    return True


def _digests(rows: pa.RecordBatch) -> Iterable[tuple[str, str, int]]:
    """(group, trajectory, digest of what was sampled) of each row."""
    for row in rows.select(["group_id", *CONTENT]).to_pylist():
        text = repr([row[name] for name in CONTENT])
        yield row["group_id"], row["trajectory_id"], xxhash.xxh3_64_intdigest(text.encode())
