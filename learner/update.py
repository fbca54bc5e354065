"""The update step: sampled trajectories in, one or more optimizer steps done, metrics out.

Owns the order of the algorithm: plan micro-batches, recompute the proximal policy, accumulate the loss's gradient, step. Must not
know how the engine reduces gradients, where trajectories come from, or Ray.

Every method is a collective: all ranks call it together, each with its own shard, and get the same metrics.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from algorithms.batching import split_microbatches
from algorithms.losses import imitation_weights, loss_coefficients, negative_log_likelihood, sequence_weights
from algorithms.ratios import RatioSums
from algorithms.types import SampledTrajectory, Trajectory
from conf.schema import AlgorithmConfig, LearnerConfig, NllTokens, RethinkingConfig
from conf.variants import nll_weight, resolved, trains_triggers
from learner.collate import KINDS, Collator, LossTerms, MicroBatch, segment_kinds
from learner.deepspeed_engine import StepResult, TrainingEngine
from learner.packing import SHARED_ROW_TOKENS, Row, pack_rows
from learner.schedule import learning_rate
from learner.surrogate import PolicySurrogate


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdatePlan:
    """One optimizer update of one rank, cut into micro-batches."""

    trajectories: list[Trajectory]  # [S]
    terms: LossTerms  # of the S samples
    microbatches: list[list[Row]]  # equally many on every rank; the last ones may be empty
    tokens: int  # that have a gradient, of all ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateResult:
    """What one optimizer update did, its sums still those of this rank alone."""

    step: StepResult | None  # None: there was nothing to train on
    loss: float  # without the NLL term
    nll: float  # the NLL term before its weight
    ratios: RatioSums
    tokens: int  # that had a gradient, of all ranks


class PolicyUpdate:
    """Runs the algorithm's update on one rank.

    Args:
        engine: that trains the policy.
        collator: makes micro-batches.
        algorithm: what is computed.
        learner: learning rate and micro-batch size.
        importance_exponent: beta of the ``corrected`` loss weight.
        max_response_tokens: the constant of ``dr_grpo``.
        num_steps: training steps of the whole run, for the learning rate.
        rethinking: the NLL term, and whether triggers are trained; None: neither.
    """

    def __init__(
        self,
        engine: TrainingEngine,
        collator: Collator,
        *,
        algorithm: AlgorithmConfig,
        learner: LearnerConfig,
        importance_exponent: float,
        max_response_tokens: int,
        num_steps: int,
        rethinking: RethinkingConfig | None = None,
    ):
        self._engine = engine
        self._collator = collator
        self._algorithm = algorithm
        self._surrogate = PolicySurrogate(algorithm)
        self._learner = learner
        self._importance_exponent = importance_exponent
        self._max_response_tokens = max_response_tokens
        self._num_steps = num_steps
        self._rethinking = resolved(rethinking or RethinkingConfig())
        self._nll_weight = nll_weight(self._rethinking)
        self._trains_triggers = trains_triggers(self._rethinking)

    def update(self, samples: Sequence[SampledTrajectory], *, step: int) -> dict[str, float]:
        """Take the training step's optimizer updates on the clipped surrogate.

        Args:
            samples: this rank's, each naming its update; none is allowed.
            step: training step, from 0; also the policy version of the weights, since each step makes one.

        Returns:
            Step metrics over all ranks. What has no value, because every update was skipped, has no key.

        Raises:
            ValueError: when a sample names an update that the step doesn't have.
        """
        started = time.perf_counter()
        updates = range(self._algorithm.updates_per_step)
        if strays := {sample.update for sample in samples} - set(updates):
            raise ValueError(f"samples name the updates {sorted(strays)} of a step with algorithm.updates_per_step={len(updates)}")
        plans = [self._plan([sample for sample in samples if sample.update == update]) for update in updates]
        proximal = self._proximal_logprobs(plans)
        results = []
        for plan, logprobs in zip(plans, proximal, strict=True):
            rate = self._learning_rate(step * len(plans) + len(results), self._num_steps * len(plans))
            results.append(self._optimize(plan, logprobs, rate, version=step, update=len(results)))
        return self._metrics(results) | {"learning_rate": rate, "time/update_s": time.perf_counter() - started}

    def supervised(self, trajectories: Sequence[Trajectory], *, step: int) -> float:
        """Take one optimizer step on the mean negative log-likelihood of the responses' loss_mask tokens.

        Args:
            trajectories: this rank's; none is allowed.
            step: optimizer step, from 0.

        Returns:
            The loss over all ranks, nats a token; NaN when there was no token.
        """
        (total_tokens,) = self._engine.sum_over_ranks([_num_trained(trajectories)])
        if total_tokens == 0:
            return float("nan")
        plan = UpdatePlan(
            trajectories=list(trajectories),
            terms=LossTerms(coefficients=[0.0] * len(trajectories), weights=[1.0 / total_tokens] * len(trajectories)),
            microbatches=self._microbatches(trajectories),
            tokens=int(total_tokens),
        )
        loss = self._accumulate(plan, lambda _, batch, logprobs: -(batch.weights * logprobs).sum())
        self._engine.step(self._learning_rate(step, self._num_steps))
        return self._engine.sum_over_ranks([loss])[0]

    @torch.no_grad()
    def score(self, trajectories: Sequence[Trajectory], **distribution) -> list[np.ndarray]:
        """Compute the policy's log-probs of given responses.

        Args:
            trajectories: this rank's; none is allowed.
            distribution: temperature and mask_banned as in PolicyModel.forward.

        Returns:
            [R] float32 each, nats, also of tokens that the model didn't sample.
        """
        owners, logprobs = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for rows in self._microbatches(trajectories):
            batch = self._collator.collate(trajectories, rows, masked=True)
            owners.append(batch.samples.numpy())
            logprobs.append(self._engine.forward(batch.to(self._engine.device), **distribution).cpu().numpy())
        # Each sample's tokens lie together and in order, so a stable sort by sample puts everything in its place.
        flat = np.concatenate(logprobs)[np.argsort(np.concatenate(owners), kind="stable")]
        lengths = [trajectory.num_response_tokens for trajectory in trajectories]
        return np.split(flat, np.cumsum(lengths)[:-1]) if lengths else []

    def _optimize(self, plan: UpdatePlan, proximal: list[torch.Tensor] | None, rate: float, *, version: int, update: int) -> UpdateResult:
        """One optimizer update: the gradient of every micro-batch, then a step."""
        if plan.tokens == 0:
            return UpdateResult(step=None, loss=0.0, nll=0.0, ratios=RatioSums(), tokens=0)
        ratios, nll = RatioSums(), 0.0

        def surrogate(index: int, batch: MicroBatch, policy_logprobs: torch.Tensor) -> torch.Tensor:
            nonlocal ratios, nll
            recomputed = None if proximal is None else proximal[index]
            if self._trains_triggers:
                batch = _with_ratio_one(batch, policy_logprobs.detach() if recomputed is None else recomputed, version)
            loss, statistics = self._surrogate.loss(batch, policy_logprobs, recomputed, version=version, update=update)
            ratios += statistics
            imitated = self._rethinking.nll_tokens is NllTokens.all or batch.segment_kinds == KINDS["y2"]
            imitation = negative_log_likelihood(policy_logprobs, batch.nll_weights * imitated)
            nll += float(imitation.detach())
            return loss + self._nll_weight * imitation

        loss = self._accumulate(plan, surrogate) - self._nll_weight * nll
        return UpdateResult(step=self._engine.step(rate), loss=loss, nll=nll, ratios=ratios, tokens=plan.tokens)

    def _accumulate(self, plan: UpdatePlan, loss_of: Callable[[int, MicroBatch, torch.Tensor], torch.Tensor]) -> float:
        """Add up the gradients of the plan's micro-batches; the sum of their losses, of this rank."""
        total = 0.0
        for index, rows in enumerate(plan.microbatches):
            batch = self._collator.collate(plan.trajectories, rows, plan.terms).to(self._engine.device)
            loss = loss_of(index, batch, self._engine.forward(batch))
            self._engine.backward(loss, last=index == len(plan.microbatches) - 1)
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def _proximal_logprobs(self, plans: list[UpdatePlan]) -> list[list[torch.Tensor] | None]:
        """The log-probs of every micro-batch under the weights that the batch met; None where nobody asks for them."""
        if not self._surrogate.needs_recomputation:
            return [None] * len(plans)
        return [
            [self._engine.forward(self._collator.collate(plan.trajectories, rows).to(self._engine.device)) for rows in plan.microbatches]
            for plan in plans
        ]

    def _plan(self, samples: list[SampledTrajectory]) -> UpdatePlan:
        """Cut one update's samples into micro-batches and work out what each weighs in the global batch.

        A sample without a coefficient and without an NLL term counts in the normalisers but has no gradient, so it isn't computed.
        """
        if self._trains_triggers:
            samples = [dataclasses.replace(sample, trajectory=_with_trained_triggers(sample.trajectory)) for sample in samples]
        coefficients = loss_coefficients(
            torch.tensor([sample.trajectory.advantage for sample in samples]),
            torch.tensor([sample.probability for sample in samples], dtype=torch.float64),
            torch.tensor([sample.table_size for sample in samples]),
            weight=self._algorithm.loss_weight.value,
            importance_exponent=self._importance_exponent,
        )
        trajectories = [sample.trajectory for sample in samples]
        imitation = torch.zeros(len(samples))
        if self._nll_weight:
            imitation = imitation_weights(
                torch.tensor([trajectory.correct for trajectory in trajectories], dtype=torch.bool),
                torch.tensor([trajectory.reward for trajectory in trajectories]),
                torch.tensor([math.nan if t.y1_reward is None else t.y1_reward for t in trajectories]),
                factor=self._rethinking.nll_factor.value,
            )
        kept = ((coefficients != 0) | (imitation != 0)).nonzero().flatten().tolist()
        trained = [trajectories[index] for index in kept]
        counts = [_num_trained(trajectories), len(trajectories), _num_trained(trained)]
        total_tokens, total_sequences, tokens = self._engine.sum_over_ranks(counts)
        weights = sequence_weights(
            torch.tensor([_num_trained([trajectory]) for trajectory in trained]),
            aggregation=self._algorithm.loss_aggregation.value,
            total_tokens=total_tokens,
            total_sequences=total_sequences,
            max_response_tokens=self._max_response_tokens,
        )
        return UpdatePlan(
            trajectories=trained,
            terms=LossTerms(
                coefficients=coefficients[kept].tolist(),
                weights=weights.tolist(),
                nll_weights=(imitation[kept] / max(total_tokens, 1.0)).tolist(),
            ),
            microbatches=self._microbatches(trained),
            tokens=int(tokens),
        )

    def _microbatches(self, trajectories: Sequence[Trajectory]) -> list[list[Row]]:
        """Rows by token count, in as many micro-batches on every rank: ZeRO's collectives need equal counts."""
        prompt_lengths = [self._collator.prompt_length(trajectory) for trajectory in trajectories]
        rows = pack_rows(trajectories, prompt_lengths, max_row_tokens=min(SHARED_ROW_TOKENS, self._learner.microbatch_tokens))
        cut = split_microbatches([row.num_tokens for row in rows], max_tokens=self._learner.microbatch_tokens)
        count = self._engine.max_over_ranks(len(cut))
        return [[rows[index] for index in indices] for indices in cut] + [[] for _ in range(count - len(cut))]

    def _learning_rate(self, optimizer_step: int, num_optimizer_steps: int) -> float:
        return learning_rate(
            optimizer_step,
            peak=self._learner.learning_rate,
            num_steps=num_optimizer_steps,
            warmup_fraction=self._learner.warmup_fraction,
            min_ratio=self._learner.min_learning_rate_ratio,
        )

    def _metrics(self, results: list[UpdateResult]) -> dict[str, float]:
        """Add the sums of all ranks, once a step, and turn them into the step metrics."""
        own = sum((result.ratios for result in results), RatioSums())
        names = [field.name for field in fields(RatioSums)]
        losses = [sum(result.loss for result in results), sum(result.nll for result in results)]
        loss, nll, *sums = self._engine.sum_over_ranks([*losses, *(getattr(own, name) for name in names)])
        taken = [result for result in results if result.step is not None]
        applied = [result for result in taken if result.step.applied]
        metrics = RatioSums(**dict(zip(names, sums, strict=True))).metrics()
        if taken:
            metrics["loss/policy"] = loss / len(taken)
            if self._nll_weight:
                metrics["loss/nll"] = nll / len(taken)
        if applied:
            metrics["grad_norm"] = sum(result.step.grad_norm for result in applied) / len(applied)
        return metrics | {
            "tokens/trained": float(sum(result.tokens for result in applied)),
            "update/skipped": float(len(taken) - len(applied)),
            "update/empty": float(len(results) - len(taken)),
        }


def _with_ratio_one(batch: MicroBatch, logprobs: torch.Tensor, version: int) -> MicroBatch:
    """The batch with triggers, which nobody sampled, as if the policy that it met had sampled them."""
    forced = batch.segment_kinds == KINDS["trigger"]
    return dataclasses.replace(
        batch,
        behavior_logprobs=torch.where(forced, logprobs, batch.behavior_logprobs),
        versions=torch.where(forced, version, batch.versions),
    )


def _with_trained_triggers(trajectory: Trajectory) -> Trajectory:
    """The trajectory with a loss mask that covers its trigger."""
    return dataclasses.replace(trajectory, loss_mask=trajectory.loss_mask | (segment_kinds(trajectory) == KINDS["trigger"]))


def _num_trained(trajectories: Sequence[Trajectory]) -> int:
    """Tokens that the model sampled itself."""
    return sum(int(trajectory.loss_mask.sum()) for trajectory in trajectories)
