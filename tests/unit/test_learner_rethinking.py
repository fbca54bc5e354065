"""What y1 + trigger + y2 adds to the update: the NLL term, and no gradient from trigger tokens."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms.losses import imitation_weights, negative_log_likelihood
from algorithms.types import Segment, Trajectory
from conf.schema import LossAggregation, NllTokens, NllWeight, ProximalKind, RethinkingConfig, RethinkingVariant
from tests.tiny_learner import PlainLearner, as_samples, make_trajectories, noise_image
from tests.unit.test_learner_update import Learner, assert_same_weights

WEIGHT = 0.7  # large enough that a mistake in the term shows


def rethought(trajectory: Trajectory, *, correct: bool = True, y1_reward: float = 0.0) -> Trajectory:
    """A third each of y1, trigger and y2."""
    length = trajectory.num_response_tokens
    ends = (0, length // 3, 2 * length // 3, length)
    segments = tuple(Segment(kind=kind, start=a, end=b) for kind, a, b in zip(("y1", "trigger", "y2"), ends, ends[1:], strict=False))
    mask = np.ones(length, np.bool_)
    mask[ends[1] : ends[2]] = False
    logprobs = np.where(mask, trajectory.behavior_logprobs, np.float32(0))
    return dataclasses.replace(
        trajectory,
        segments=segments,
        loss_mask=mask,
        behavior_logprobs=logprobs,
        correct=correct,
        reward=float(correct),
        y1_reward=y1_reward,
    )


@pytest.fixture(scope="module")
def trajectories(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Trajectory]:
    """A right and a wrong y2, one right before, one of zero advantage, and two rollouts that did not go on."""
    image = noise_image(tmp_path_factory.mktemp("images"), 1)
    a, b, c = make_trajectories(tiny_model, (image,), number=0, samples=3, lengths=(6, 12))
    d, e, f = make_trajectories(tiny_model, (), number=1, samples=3, lengths=(6, 12))
    return [
        rethought(a),
        rethought(b, correct=False),
        rethought(c, y1_reward=1.0),
        dataclasses.replace(rethought(d, y1_reward=-0.1), advantage=0.0),
        e,
        dataclasses.replace(f, advantage=0.0),
    ]


def learner_with(tiny_model: Path, *, algorithm: dict | None = None, learner: dict | None = None, **rethinking: object) -> Learner:
    return Learner(
        tiny_model,
        algorithm={"sequence_ratio_low": None, "sequence_ratio_high": None, **(algorithm or {})},
        learner=learner,
        rethinking=RethinkingConfig(**{"enabled": True, "nll_weight": WEIGHT, **rethinking}),
    )


class Judge(PlainLearner):
    """Plain PyTorch with the NLL term, written out."""

    def nll(self, trajectories: list[Trajectory], factors: list[float], *, y2_only: bool) -> torch.Tensor:
        """The sum over the imitated tokens, divided by the trained tokens of the whole batch."""
        total = sum(int(t.loss_mask.sum()) for t in trajectories)
        value = torch.zeros(())
        for trajectory, factor in zip(trajectories, factors, strict=True):
            if factor:
                mask = torch.from_numpy(trajectory.loss_mask.copy())
                if y2_only:
                    mask[: trajectory.segments[-1].start] = False
                value = value - factor * self.logprobs(trajectory)[mask].sum() / total
        return value

    def surrogate(self, trajectories: list[Trajectory]) -> torch.Tensor:
        """With one update the ratio of policy and proximal policy is 1, its gradient is not; no sequence is masked in these tests."""
        total = sum(int(t.loss_mask.sum()) for t in trajectories)
        loss = torch.zeros(())
        for trajectory in trajectories:
            mask = torch.from_numpy(trajectory.loss_mask.copy())
            policy = self.logprobs(trajectory)[mask]
            old, behavior = policy.detach(), torch.from_numpy(trajectory.behavior_logprobs.copy())[mask]
            weight = (old - behavior).exp().clamp(max=self.config.algorithm.behavior_ratio_cap)
            loss = loss - (weight * (policy - old).exp() * trajectory.advantage).sum() / total
        return loss


@pytest.mark.parametrize(
    ("settings", "factors", "y2_only"),
    [
        ({}, [1, 0, 1, 1, 0, 0], True),
        ({"nll_tokens": NllTokens.all}, [1, 0, 1, 1, 0, 0], False),
        ({"nll_factor": NllWeight.gain}, [1, 0, 0, 1.1, 0, 0], True),
        ({"nll_weight": 0.0}, None, True),
        ({"enabled": False}, None, True),
    ],
    ids=["y2", "all", "gain", "no weight", "off"],
)
def test_the_nll_term_equals_plain_pytorch(tiny_model: Path, trajectories, settings: dict, factors: list | None, y2_only: bool) -> None:
    learner = learner_with(tiny_model, **settings)
    judge = Judge(tiny_model, learner.config)
    metrics = learner.update.update(as_samples(trajectories), step=0)
    policy = judge.surrogate(trajectories)
    nll = judge.nll(trajectories, factors, y2_only=y2_only) if factors else None
    norm = judge.apply(policy if nll is None else policy + WEIGHT * nll, metrics["learning_rate"])
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["loss/policy"] == pytest.approx(policy.item(), rel=1e-4, abs=1e-6)
    assert ("loss/nll" in metrics) is (nll is not None)
    if nll is not None:
        assert metrics["loss/nll"] == pytest.approx(nll.item(), rel=1e-5)
    assert_same_weights(learner.weights, judge.weights())


@pytest.mark.parametrize("aggregation", list(LossAggregation))
def test_the_cut_into_microbatches_is_of_no_account(tiny_model: Path, trajectories, aggregation: LossAggregation) -> None:
    """The normaliser is the global token count, whatever a micro-batch holds and however the policy loss is aggregated."""
    results = []
    for tokens in (1, 10**6):
        learner = learner_with(tiny_model, algorithm={"loss_aggregation": aggregation}, learner={"microbatch_tokens": tokens})
        results.append((learner, learner.update.update(as_samples(trajectories), step=0)))
    (fine, metrics), (coarse, expected) = results
    assert fine.engine.num_forwards > coarse.engine.num_forwards == 1
    assert metrics["loss/nll"] == pytest.approx(expected["loss/nll"], rel=1e-5)
    assert_same_weights(fine.weights, coarse.weights)


@pytest.mark.parametrize("tokens", list(NllTokens))
def test_no_gradient_reaches_a_trigger_token(tiny_model: Path, trajectories, tokens: NllTokens) -> None:
    """The log-probs that the loss is made of are those of sampled tokens alone, and every one of them has a gradient."""
    learner = learner_with(tiny_model, nll_tokens=tokens, learner={"microbatch_tokens": 10**6})
    seen: dict[str, torch.Tensor] = {}
    forward = learner.engine.forward

    def tapped(batch, **options):
        logprobs = forward(batch, **options)
        logprobs.retain_grad()
        seen.update(batch=batch, logprobs=logprobs)
        return logprobs

    learner.engine.forward = tapped
    learner.update.update(as_samples(trajectories), step=0)
    # What is not predicted has no gradient; what is predicted must be sampled, and has one.
    batch, gradient = seen["batch"], seen["logprobs"].grad
    kept = [t for t in trajectories if t.advantage or t.y1_reward is not None]
    assert len(gradient) == sum(int(t.loss_mask.sum()) for t in kept)
    assert (batch.segment_kinds != 1).all()
    imitated_only = batch.coefficients == 0
    assert (gradient[~imitated_only] != 0).all()
    assert imitated_only.any() and (gradient[imitated_only & (batch.segment_kinds == 2)] != 0).all()


def test_a_trigger_token_s_log_prob_changes_no_loss(tiny_model: Path, trajectories) -> None:
    """By finite differences: other trigger behaviour log-probs, and another score of the trigger tokens, leave loss and weights alone."""
    learners = []
    for shift in (0.0, -5.0):
        shifted = [
            dataclasses.replace(t, behavior_logprobs=np.where(t.loss_mask, t.behavior_logprobs, np.float32(shift))) for t in trajectories
        ]
        learner = learner_with(tiny_model)
        metrics = learner.update.update(as_samples(shifted), step=0)
        learners.append((learner, metrics))
    (one, first), (two, second) = learners
    assert first["loss/policy"] == second["loss/policy"] and first["loss/nll"] == second["loss/nll"]
    assert_same_weights(one.weights, two.weights, atol=0)


@pytest.mark.parametrize("proximal", [ProximalKind.recompute, ProximalKind.interpolate, ProximalKind.behavior])
def test_paper_code_trains_y1_trigger_and_y2_alike(tiny_model: Path, trajectories, proximal: ProximalKind) -> None:
    """Both losses cover every token of a y1 + trigger + y2; a trigger, which nobody sampled, has the ratio 1."""
    learner = learner_with(tiny_model, algorithm={"proximal": proximal}, variant=RethinkingVariant.paper_code, nll_weight=9.0)
    judge = Judge(tiny_model, learner.config)
    with torch.no_grad():
        scores = [judge.logprobs(t) for t in trajectories]
    whole = []
    for trajectory, score in zip(trajectories, scores, strict=True):
        triggers = np.zeros(trajectory.num_response_tokens, np.bool_)
        for segment in trajectory.segments:
            triggers[segment.start : segment.end] = segment.kind == "trigger"
        logprobs = np.where(triggers, score.numpy(), trajectory.behavior_logprobs).astype(np.float32)
        whole.append(dataclasses.replace(trajectory, loss_mask=trajectory.loss_mask | triggers, behavior_logprobs=logprobs))
    metrics = learner.update.update(as_samples(trajectories), step=0)
    nll = judge.nll(whole, [1, 0, 1, 1, 0, 0], y2_only=False)
    if proximal == ProximalKind.behavior:
        total = sum(int(t.loss_mask.sum()) for t in whole)
        policy = torch.zeros(())
        for trajectory in whole:
            mask = torch.from_numpy(trajectory.loss_mask.copy())
            ratio = (judge.logprobs(trajectory)[mask] - torch.from_numpy(trajectory.behavior_logprobs.copy())[mask]).exp()
            clipped = ratio.clamp(1 - 0.2, 1 + 0.35)
            policy = policy - torch.minimum(ratio * trajectory.advantage, clipped * trajectory.advantage).sum() / total
    else:
        policy = judge.surrogate(whole)
    judge.apply(policy + 0.05 * nll, metrics["learning_rate"])  # the variant's own weight, not the configured one
    assert metrics["loss/nll"] == pytest.approx(nll.item(), rel=1e-5)
    assert metrics["loss/policy"] == pytest.approx(policy.item(), rel=1e-4, abs=1e-6)
    assert metrics["tokens/trained"] == sum(int(t.loss_mask.sum()) for t in whole[:5])
    assert_same_weights(learner.weights, judge.weights())


def test_groups_of_several_sizes_train_as_one_batch(tiny_model: Path, trajectories) -> None:
    """rethinking.placement=append: the learner has no notion of a group's size."""
    learner = learner_with(tiny_model)
    metrics = learner.update.update(as_samples([*trajectories, trajectories[0]]), step=0)
    assert metrics["update/empty"] == 0


def test_imitation_weights_by_hand() -> None:
    correct = torch.tensor([True, True, True, False])
    rewards, before = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, torch.nan, -0.1])
    assert imitation_weights(correct, rewards, before, factor="none").tolist() == [1, 1, 0, 0]
    assert imitation_weights(correct, rewards, before, factor="gain").tolist() == [1, 0, 0, 0]
    with pytest.raises(ValueError, match="none or gain"):
        imitation_weights(correct, rewards, before, factor="all")
    with pytest.raises(ValueError, match="flat tensors"):
        imitation_weights(correct, rewards, before[:2], factor="none")


def test_negative_log_likelihood_by_hand() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -torch.inf], requires_grad=True)
    loss = negative_log_likelihood(logprobs, torch.tensor([0.5, 0.25, 0.0]))
    loss.backward()
    assert loss.item() == 1.0
    assert logprobs.grad.tolist() == [-0.5, -0.25, 0.0]


def test_a_rank_without_samples_has_no_term(tiny_model: Path) -> None:
    metrics = learner_with(tiny_model).update.update([], step=0)
    assert metrics["update/empty"] == 1 and "loss/nll" not in metrics
