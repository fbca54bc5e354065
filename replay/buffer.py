"""The replay buffer: groups of trajectories go in, the rows of a training step come out.

Owns the order of events (insert, consume, expire, draw, retire) and the counters. Must not know Ray, the learner or the rollout actors,
and knows the modes only as a SelectionPlan. One thread at a time.

A row's life: it arrives *waiting*, with its group; the step that consumes its group moves it into the table and sees it as *fresh*; from
then on it is *older*, until the plan's remover or the bounds of memory let it go. Groups are consumed turn by turn, so the table's keys,
and with them the draws, don't depend on when a group arrived. In a mode without steps groups are consumed as soon as their turn is there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from conf.schema import ReplayConfig
from replay.batches import draw_figures
from replay.counters import Counters
from replay.drawn import Drawn, Sample, count_draws, deal_rows
from replay.groups import GroupSummary, InsertReceipt, drop_figures, step_figures, take_rows
from replay.images import image_hashes
from replay.intake import Admitted, Intake, Prepared, prepare
from replay.plans import Pool, plan_for
from replay.ratio import SampleToInsertRatio
from replay.requests import SampleRequest
from replay.snapshot import Saved, SnapshotError, read_snapshot, write_snapshot
from replay.table import Table
from replay.waiting import ConsumedRows, WaitingGroup


class ReplayFullError(RuntimeError):
    """Rows that no step has consumed yet would exceed the bounds of the buffer."""


class ReplayBuffer:
    """Selective sample replay in one process.

    Args:
        config: of the replay.
        seed: of the draws.
    """

    def __init__(self, config: ReplayConfig, *, seed: int) -> None:
        if config.max_trajectories < 1:
            raise ValueError(f"replay.max_trajectories must be at least 1, got {config.max_trajectories}")
        self._config = config
        self._plan = plan_for(
            config.mode,
            priority_exponent=config.priority_exponent,
            age_decay_steps=config.age_decay_steps,
            max_age=config.max_age,
            max_times_sampled=config.max_times_sampled,
        )
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._table = Table(config, self._plan)
        self._intake = Intake()
        self._counters = Counters()

    def __len__(self) -> int:
        return len(self._table) + self._intake.waiting.num_rows

    @property
    def ready_groups(self) -> int:
        """Groups, uniform ones included, that no step has consumed yet and that wait for no earlier turn."""
        return self._intake.waiting.ready + len(self._intake.arrived)

    @property
    def waiting_groups(self) -> int:
        """Groups that no step has consumed yet, those behind a missing turn included."""
        return len(self._intake.waiting) + len(self._intake.arrived)

    @property
    def next_missing_turn(self) -> int:
        """The first turn that no group has come for."""
        return self._intake.waiting.next_turn + self._intake.waiting.ready

    @property
    def size(self) -> int:
        """Rows of the table: those that wait for their step left out."""
        return len(self._table)

    @property
    def draws_only_fresh(self) -> bool:
        """Whether the mode keeps nothing that could be drawn without consuming a group."""
        return self._plan.older is None

    @property
    def num_drawable(self) -> int:
        """Rows that can be drawn without consuming a group."""
        return self._table.older.num_drawable if self._table.older is not None else 0

    @property
    def ratio(self) -> SampleToInsertRatio:
        """The rule of draws to inserts, as it stands."""
        return self._counters.ratio(self._config)

    @property
    def config(self) -> ReplayConfig:
        """The settings."""
        return self._config

    @property
    def next_turn(self) -> int:
        """The turn that is consumed next."""
        return self._intake.waiting.next_turn

    @property
    def next_serial(self) -> int:
        """The number, in the order of arrival, that the next row to be added gets."""
        return self._intake.next_serial

    @property
    def num_bytes(self) -> int:
        """Bytes of all that is held: rows, those that left and still take room, and images."""
        return self._table.storage.held_bytes + self._intake.waiting.num_bytes + self._table.images.num_bytes

    def has_room(self, num_trajectories: int, num_bytes: int = 0) -> bool:
        """Whether an insert can't fail for want of room.

        Args:
            num_trajectories: of the batch; those that the mode can't draw count too.
            num_bytes: of the batch and its images.

        Returns:
            True as well for a batch that is larger than the whole buffer, for which nobody needs to wait.
        """
        too_large = num_trajectories > self._config.max_trajectories or num_bytes > self._config.max_bytes
        return too_large or self._table.fits(self._intake.waiting.num_rows + num_trajectories, self._intake.waiting.num_bytes + num_bytes)

    def insert(
        self, batch: pa.RecordBatch, turns: Mapping[str, int] | None = None, images: Mapping[str, bytes] | None = None
    ) -> InsertReceipt:
        """Take in whole rollout groups, which wait for the step that consumes them.

        Args:
            batch: of TRAJECTORY_SCHEMA, any number of groups, each with all of its trajectories. Copied.
            turns: by group id, the place of each group in the order of consumption, from 0 without gaps; None: behind all others, that is
                in the order of arrival.
            images: bytes by SHA-256 of images that the trajectories show. Copied, each once; without its bytes an image stays a path.

        Returns:
            What was new. Groups that arrived before add nothing, so an insert may be retried.

        Raises:
            ValueError: when the batch has another schema or impossible values, a turn is missing or taken by another group, or an image
                isn't that of its hash; nothing is inserted.
            ReplayFullError: when waiting rows alone would exceed a bound of memory; nothing is inserted.
        """
        return self.add(self.admit(prepare(batch, images or {}), turns))

    def admit(self, prepared: Prepared, turns: Mapping[str, int] | None = None) -> Admitted:
        """Choose what is new of checked rows, without a change; see insert."""
        admitted = self._intake.admit(prepared, turns)
        if admitted.images:
            admitted = replace(admitted, images=self._table.images.new(image_hashes(admitted.rows), admitted.images))
        num_rows, waiting = len(admitted.arrivals.rows), self._intake.waiting
        num_bytes = admitted.num_bytes
        if not self._table.fits(waiting.num_rows + num_rows, waiting.num_bytes + num_bytes):
            raise ReplayFullError(
                f"replay.max_trajectories={self._config.max_trajectories} can't hold {num_rows} more trajectories beside "
                f"{waiting.num_rows} of {len(waiting)} groups that no step has consumed yet, or "
                f"replay.max_bytes={self._config.max_bytes} not their {num_bytes} bytes beside {waiting.num_bytes}"
            )
        return admitted

    def add(self, admitted: Admitted) -> InsertReceipt:
        """Insert what was admitted; see insert."""
        arrivals, rows, waiting = admitted.arrivals, admitted.rows, self._intake.waiting
        shown = image_hashes(rows)
        self._table.images.add(shown, admitted.images)  # first, so that none of them is dropped to make room for these rows
        self._counters.evicted += self._table.make_room(waiting.num_rows + rows.num_rows, waiting.num_bytes + admitted.encoded.size)
        receipt = InsertReceipt(
            groups=len(arrivals.summaries),
            effective_groups=sum(summary.effective for summary in arrivals.summaries),
            trajectories=len(arrivals.rows),
            admitted=int(np.count_nonzero(self._plan.admits(arrivals.effective, arrivals.advantages))),
            duplicate_groups=arrivals.duplicate_groups,
        )
        self._counters.count_insert(receipt)
        if not self._plan.waits and admitted.turns and self._intake.is_next(admitted):
            self._consume_at_once(arrivals.summaries, self._intake.pass_on(admitted), shown)
            return receipt
        self._intake.queue(admitted)
        if not self._plan.waits:
            self._let_in(waiting.take(waiting.ready))
        return receipt

    def sample(self, **request: Any) -> Sample:
        """Consume the waiting groups whose turn it is and draw the rows of one training step.

        Args:
            **request: of SampleRequest.

        Returns:
            num_updates * batch_size draws, dealt to the ranks; none when no row has a learning signal, fewer when the reuse limit leaves
            fewer.

        Raises:
            ValueError: when an argument is out of range, fewer groups are ready, or a row is of a later version than the learner's;
                nothing is consumed.
        """
        return self.draw(SampleRequest(**request)).read()

    def draw(self, request: SampleRequest) -> Drawn:
        """The first part of sample, which changes the buffer; the rows may be copied later and in another thread. See sample."""
        self.check_request(request)
        policy_version, num_groups = request.policy_version, request.num_groups
        if policy_version is None:
            policy_version = self._table.newest_version
        consumed = self._intake.waiting.take(num_groups) if self._plan.waits else []
        summaries = [group.summary for group in consumed] or [self._intake.arrived.popleft() for _ in range(num_groups)]
        step_trajectories = sum(summary.trajectories for summary in summaries)
        self._refresh([group.summary for group in consumed])
        if num_groups:
            self._expire(policy_version, step_trajectories)
        oldest_allowed = policy_version - (np.inf if request.max_staleness is None else request.max_staleness)
        dropped = [group for group in consumed if group.summary.version_min < oldest_allowed]
        self._drop(dropped)
        kept = [group for group in consumed if group.summary.version_min >= oldest_allowed]
        places = self._enter(ConsumedRows.together(kept)) if kept else np.empty(0, np.int64)
        priorities, versions = (self._table.storage.column(name)[places] for name in ("priority", "version"))
        fresh = Pool(selector=self._plan.fresh, places=places, priorities=priorities, ages=policy_version - versions)
        draw = self._plan.draw(self._rng, fresh=fresh, older=self._table.older, num_rows=request.num_rows)
        draws = count_draws(self._table, draw, policy_version=policy_version, num_updates=request.num_updates)
        shards = deal_rows(self._table, draw.places, draws["update"], num_shards=request.num_shards)
        held = len(self._table)  # while the batch was drawn: in three of the modes nothing outlives its step
        self._table.open(places)
        if num_groups:
            self._expire(policy_version, step_trajectories)
        self._counters.removed += self._table.retire_used(draw.places)
        self._counters.count_draw(groups=num_groups, dropped=len(dropped), draws=len(draw.places))
        stats = {
            **(step_figures(summaries, policy_version=policy_version) if summaries else {}),
            **(drop_figures(summaries, [group.summary for group in dropped]) if summaries else {}),
            **{f"replay/{name}": count for name, count in self.stats().items()},
            **draw_figures(draws, num_updates=request.num_updates),
            "replay/size": held,
            "replay/candidates": held,
        }
        num_bytes = int(self._table.storage.column("row_bytes")[draw.places].sum())
        return Drawn(shards=shards, draws=draws, stats=stats, consumed=[group.rows for group in consumed], num_bytes=num_bytes)

    def update_priorities(self, keys: NDArray[np.int64], priorities: NDArray[np.floating]) -> int:
        """Set what stands for |A| in P.

        Args:
            keys: [K] as handed out with the samples; rows that have left are passed over, of a key's several places the last counts.
            priorities: [K] finite, >= 0; 0 takes a row out of the draws by |A|^alpha.

        Returns:
            How many of the keys were there.

        Raises:
            ValueError: when the shapes disagree or a priority is negative, not finite or too large; nothing is changed.
        """
        return self._table.update_priorities(*self.check_priorities(keys, priorities))

    def check_priorities(self, keys: NDArray[np.int64], priorities: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Refuse priorities that can't be set; see update_priorities."""
        return self._table.check_priorities(keys, priorities)

    def count_duplicates(self, num_groups: int) -> None:
        """Count groups that came again, where they themselves aren't at hand any more."""
        self._counters.duplicate_groups += num_groups

    def pass_over_missing(self) -> None:
        """Let groups in that wait behind turns whose groups are lost, where no step has to consume them."""
        waiting = self._intake.waiting
        if not self._plan.waits:
            self._let_in(waiting.take_through(waiting.end_turn))

    def consume(self, *, through_turn: int, policy_version: int | None) -> None:
        """Do to the rows what a step did whose draws can't be made again, because something before it was lost.

        Args:
            through_turn: one past the last turn that the step consumed.
            policy_version: of the learner at that step.
        """
        consumed = self._intake.waiting.take_through(through_turn) if self._plan.waits else []
        self._refresh([group.summary for group in consumed])
        if consumed:
            self._table.open(self._enter(ConsumedRows.together(consumed)))
        version = self._table.newest_version if policy_version is None else policy_version
        self._expire(version, sum(group.summary.trajectories for group in consumed))
        self._counters.consumed_groups += len(consumed)

    def stats(self) -> dict[str, int]:
        """Tell sizes and counters since the start of the run.

        Returns:
            Name -> count; as metrics they're called "replay/" and the name.
        """
        storage, images = self._table.storage, self._table.images
        return {
            "size": len(storage),
            "max_trajectories": self._config.max_trajectories,
            "bytes": self.num_bytes,
            "max_bytes": self._config.max_bytes,
            "images": len(images),
            "image_bytes": images.num_bytes,
            "batches": storage.num_batches,
            "ready_groups": self.ready_groups,
            "waiting_groups": self.waiting_groups,
            **vars(self._counters),
        }

    def snapshot(self, folder: str | os.PathLike[str]) -> None:
        """Write everything that later draws depend on.

        Args:
            folder: used for this buffer's snapshot alone; the one in it is replaced at once or not at all.

        Raises:
            OSError: when the folder can't be written.
        """
        write_snapshot(folder, self.capture())

    def capture(self) -> Saved:
        """Take the state as it is now, cheaply, for write_snapshot in another thread.

        Returns:
            Copies that share the rows' and the images' bytes.
        """
        state = {
            "mode": self._config.mode.value,
            **self._intake.state(),
            "counters": asdict(self._counters),
            "generator": self._rng.bit_generator.state,
            "table": self._table.state(),
        }
        waiting = self._intake.waiting.all()
        return Saved(
            storage=self._table.storage.frozen_copy(),
            waiting=[group.rows for group in waiting],
            waiting_serials=[group.serial for group in waiting],
            next_serial=self._intake.next_serial,
            images=self._table.images.content,
            state=state,
        )

    def restore(self, folder: str | os.PathLike[str]) -> None:
        """Replace the content by a snapshot's; draws go on as if there had been no interruption.

        Args:
            folder: with a snapshot.

        Raises:
            SnapshotError: when the snapshot is missing, damaged, of another schema or of another mode; nothing is changed.
            ReplayFullError: when its waiting rows alone exceed a bound of memory; nothing is changed.
        """
        self.load(read_snapshot(folder))

    def load(self, saved: Saved) -> None:
        """Put a captured state in the place of this one; see restore.

        Args:
            saved: from capture or read_snapshot; its storage is the buffer's from now on.

        Raises:
            SnapshotError: when it's of another mode; nothing is changed.
            ReplayFullError: when its waiting rows alone exceed a bound of memory; nothing is changed.
        """
        state = saved.state
        if state["mode"] != self._config.mode.value:
            raise SnapshotError(f"the snapshot was taken with replay.mode={state['mode']}, this run has {self._config.mode.value}")
        num_waiting, num_bytes = sum(rows.num_rows for rows in saved.waiting), sum(rows.nbytes for rows in saved.waiting)
        if num_waiting > self._config.max_trajectories or num_bytes > self._config.max_bytes:
            raise ReplayFullError(
                f"replay.max_trajectories={self._config.max_trajectories} and replay.max_bytes={self._config.max_bytes} can't hold the "
                f"snapshot's {num_waiting} trajectories of {num_bytes} bytes that no step has consumed yet"
            )
        bit_generator = np.random.PCG64()
        bit_generator.state = state["generator"]
        self._rng = np.random.Generator(bit_generator)
        self._table = Table(self._config, self._plan, saved.storage)
        self._table.images.add(image_hashes(saved.storage.gather(saved.storage.places, ["images"])), saved.images)
        for rows in saved.waiting:
            self._table.images.add(image_hashes(rows), saved.images)
        self._intake = Intake.restore(list(zip(saved.waiting, saved.waiting_serials, strict=True)), state, next_serial=saved.next_serial)
        self._table.restore(state["table"])
        self._counters = Counters(**state["counters"])
        self._counters.evicted += self._table.make_room(self._intake.waiting.num_rows, self._intake.waiting.num_bytes)

    def _let_in(self, groups: Sequence[WaitingGroup]) -> None:
        """Move groups that waited into the table that no step has to consume."""
        if groups:
            consumed = ConsumedRows.together(groups)
            self._consume_at_once([group.summary for group in groups], consumed, image_hashes(consumed.rows))

    def _consume_at_once(self, summaries: Sequence[GroupSummary], consumed: ConsumedRows, shown: Counter[str]) -> None:
        """Move groups into the table that no step has to consume."""
        self._refresh(summaries)
        places = self._enter(consumed)
        self._table.open(places, shown if len(places) == consumed.rows.num_rows else None)
        self._intake.arrived.extend(summaries)

    def _enter(self, consumed: ConsumedRows) -> NDArray[np.int64]:
        """Move what the mode can draw of consumed groups into the table, as one batch."""
        admitted = self._plan.admits(consumed.effective, consumed.advantages)
        entering = consumed.rows
        if not admitted.all():
            entering = take_rows(consumed.rows, np.flatnonzero(admitted))
            if self._table.images.shows_any:
                self._table.images.drop(image_hashes(take_rows(consumed.rows, np.flatnonzero(~admitted))))
        advantages = consumed.advantages[admitted]
        places = self._table.storage.append(
            entering,
            {
                "version": consumed.versions[admitted],
                "tokens": consumed.tokens[admitted],
                "current_advantage": advantages,
                "priority": np.abs(advantages),
                "serial": consumed.serials[admitted],
            },
        )
        self._counters.admitted += len(places)
        return places

    def _drop(self, groups: Sequence[WaitingGroup]) -> None:
        """Let go of what consumed groups hold that don't enter the table."""
        for group in groups:
            self._table.images.drop(image_hashes(group.rows))

    def _refresh(self, consumed: Sequence[GroupSummary]) -> None:
        """Give older rows of the consumed groups' prompts a newer baseline."""
        if self._config.priority_refresh:
            means = {summary.prompt_id: summary.reward_sum / summary.trajectories for summary in consumed}
            refreshed, mastered = self._table.refresh(means)
            self._counters.refreshed += refreshed
            self._counters.removed += mastered

    def _expire(self, policy_version: int, step_trajectories: int) -> None:
        self._counters.removed += self._table.expire(policy_version, step_trajectories)

    def check_request(self, request: SampleRequest) -> None:
        """Refuse draws that can't be made now; see sample."""
        num_groups, policy_version = request.num_groups, request.policy_version
        if num_groups == 0 and self._plan.older is None:
            raise ValueError(f"replay.mode={self._config.mode.value} draws only what a step consumes: num_groups must be at least 1, got 0")
        if num_groups > self.ready_groups:
            raise ValueError(f"{num_groups} fresh groups were asked for, {self.ready_groups} are there")
        consumed = self._intake.waiting.peek(num_groups) if self._plan.waits else []
        newest = max((group.summary.version_max for group in consumed), default=0)
        newest = max(newest, self._table.newest_version)
        if policy_version is not None and newest > policy_version:
            raise ValueError(
                f"a trajectory was sampled by policy version {newest}, the learner is at {policy_version}: "
                f"replay and learner aren't of the same run or checkpoint"
            )
