"""The update against plain PyTorch, on an engine that is torch alone: what DeepSpeed adds is tested in integration."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms.types import VersionSpan
from conf.schema import LossAggregation, LossWeight, ProximalKind, RethinkingConfig
from learner.deepspeed_engine import StepResult
from learner.policy import PolicyModel
from learner.update import PolicyUpdate
from tasks.prompts import allowed_token_ids, load_tokenizer
from tests.tiny_learner import PlainLearner, as_samples, make_collator, make_config, make_trajectories, noise_image


class TorchEngine:
    """TrainingEngine's interface over torch's own optimizer, in one process."""

    device = torch.device("cpu")

    def __init__(self, policy, settings):
        self.policy, self.settings, self.num_forwards, self.rates = policy, settings, 0, []
        self.optimizer = torch.optim.AdamW(
            policy.parameters(), lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
        )

    def forward(self, batch, **options):
        self.num_forwards += 1
        return self.policy(batch, **options)

    def backward(self, loss, *, last):
        (loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)).backward()

    def step(self, learning_rate):
        self.rates.append(learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.max_grad_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return StepResult(applied=math.isfinite(norm), grad_norm=norm)

    def sum_over_ranks(self, values):
        return [float(value) for value in values]

    def max_over_ranks(self, value):
        return value


class Learner:
    def __init__(self, model_path: Path, *, max_response_tokens: int = 32, rethinking: RethinkingConfig | None = None, **sections):
        self.config = make_config(**sections)
        allowed = allowed_token_ids(load_tokenizer(model_path))
        self.policy = PolicyModel.load(model_path, dtype=torch.float32, temperature=1.0, allowed_token_ids=allowed)
        self.engine = TorchEngine(self.policy, self.config.learner)
        self.update = PolicyUpdate(
            self.engine, make_collator(model_path), algorithm=self.config.algorithm, learner=self.config.learner,
            importance_exponent=1.0, max_response_tokens=max_response_tokens, num_steps=self.config.run.num_steps,
            rethinking=rethinking,
        )  # fmt: skip
        self.weights = dict(self.policy.model.named_parameters())


@pytest.fixture(scope="module")
def trajectories(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list:
    folder = tmp_path_factory.mktemp("images")
    pictures = [(noise_image(folder, 1),), (), (noise_image(folder, 2), noise_image(folder, 1))]
    return [t for number, images in enumerate(pictures) for t in make_trajectories(tiny_model, images, number=number, samples=3)]


def assert_same_weights(found: dict, expected: dict, *, atol: float = 1e-5) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach(), value.detach(), atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    # Adam divides tiny gradients by themselves, so a few weights may differ visibly; the rest must not.
    assert mean_difference(found, expected) <= atol / 1000


def mean_difference(found: dict, expected: dict) -> float:
    return float(torch.cat([(found[name].detach() - value.detach()).abs().flatten() for name, value in expected.items()]).mean())


def test_equals_plain_pytorch(tiny_model: Path, trajectories) -> None:
    learner = Learner(tiny_model)
    plain = PlainLearner(tiny_model, learner.config)
    for step in range(2):
        metrics = learner.update.update(as_samples(trajectories), step=step)
        norm = plain.step(trajectories, rate=metrics["learning_rate"])
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert_same_weights(learner.weights, plain.weights())
    assert metrics["tokens/trained"] == sum(int(t.loss_mask.sum()) for t in trajectories)
    assert metrics["update/skipped"] == metrics["update/empty"] == 0
    assert metrics.keys() >= {"ratio/mean", "ratio/clip_fraction", "ratio/ess", "kl/behavior_proximal", "loss/policy", "time/update_s"}


def test_several_updates_keep_the_proximal_policy_of_the_step(tiny_model: Path, trajectories) -> None:
    # Narrow bounds, so that a small step is clipped: otherwise the proximal policy cancels out of the loss.
    learner = Learner(tiny_model, algorithm={"updates_per_step": 2, "clip_low": 1e-3, "clip_high": 1e-3})
    plain, forgetful = (PlainLearner(tiny_model, learner.config) for _ in range(2))
    halves = trajectories[::2], trajectories[1::2]
    with torch.no_grad():
        proximal = [[plain.logprobs(t) for t in half] for half in halves]
    samples = [sample for update, half in enumerate(halves) for sample in as_samples(half, update=update)]
    metrics = learner.update.update(samples, step=0)
    for half, old, rate in zip(halves, proximal, learner.engine.rates, strict=True):
        plain.step(half, rate=rate, proximal=old)
        forgetful.step(half, rate=rate)
    assert_same_weights(learner.weights, plain.weights())
    assert mean_difference(learner.weights, plain.weights()) < 1e-8 < mean_difference(learner.weights, forgetful.weights())
    assert metrics["ratio/clip_fraction"] > 0.1


def test_one_update_needs_no_pass_for_the_proximal_policy(tiny_model: Path, trajectories) -> None:
    learner = Learner(tiny_model, learner={"microbatch_tokens": 10**6})
    learner.update.update(as_samples(trajectories), step=0)
    assert learner.engine.num_forwards == 1


def test_the_behaviour_policy_as_proximal(tiny_model: Path, trajectories) -> None:
    learner = Learner(tiny_model, algorithm={"proximal": ProximalKind.behavior})
    plain = PlainLearner(tiny_model, learner.config)
    metrics = learner.update.update(as_samples(trajectories), step=0)
    plain.step(trajectories, rate=metrics["learning_rate"], proximal=[torch.from_numpy(t.behavior_logprobs.copy()) for t in trajectories])
    assert_same_weights(learner.weights, plain.weights())
    assert metrics["kl/behavior_proximal"] == 0


def test_the_step_s_number_is_the_version_that_staleness_counts_from(tiny_model: Path, trajectories) -> None:
    count = trajectories[0].num_response_tokens
    spans = (VersionSpan(start=0, end=1, version=4), VersionSpan(start=1, end=count, version=6))
    crossing = dataclasses.replace(trajectories[0], version_spans=spans, loss_mask=np.ones(count, np.bool_))
    metrics = Learner(tiny_model).update.update(as_samples([crossing]), step=6)
    assert metrics["staleness/trained_mean"] == pytest.approx(2 / count)


def test_an_interpolated_proximal_policy_needs_no_pass_and_knows_versions(tiny_model: Path, trajectories) -> None:
    settings = {"updates_per_step": 2, "proximal": ProximalKind.interpolate}
    samples = [sample for update in range(2) for sample in as_samples(trajectories, update=update)]
    learner, older = (Learner(tiny_model, algorithm=settings, learner={"microbatch_tokens": 10**6}) for _ in range(2))
    metrics = learner.update.update(samples, step=0)
    assert learner.engine.num_forwards == 2
    assert older.update.update(samples, step=3)["kl/behavior_proximal"] > metrics["kl/behavior_proximal"] > 0


@pytest.mark.parametrize("aggregation", list(LossAggregation))
def test_the_cut_into_microbatches_is_of_no_account(tiny_model: Path, trajectories, aggregation: LossAggregation) -> None:
    results = []
    for tokens in (1, 10**6):
        learner = Learner(tiny_model, algorithm={"loss_aggregation": aggregation}, learner={"microbatch_tokens": tokens})
        results.append((learner, learner.update.update(as_samples(trajectories), step=0)))
    (fine, metrics), (coarse, expected) = results
    assert fine.engine.num_forwards == len(trajectories)
    assert coarse.engine.num_forwards == 1
    assert_same_weights(fine.weights, coarse.weights)
    for name in expected.keys() - {"time/update_s"}:
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def test_a_repeated_draw_counts_twice(tiny_model: Path, trajectories) -> None:
    drawn = [trajectories[0], trajectories[0], trajectories[4]]
    learner = Learner(tiny_model)
    plain = PlainLearner(tiny_model, learner.config)
    metrics = learner.update.update(as_samples(drawn), step=0)
    plain.step(drawn, rate=metrics["learning_rate"])
    assert_same_weights(learner.weights, plain.weights())


def test_without_an_advantage_a_sample_only_counts_in_the_normaliser(tiny_model: Path, trajectories) -> None:
    flat = [dataclasses.replace(t, advantage=0.0) for t in trajectories[3:]]
    batch = [*trajectories[:3], *flat]
    learner = Learner(tiny_model, learner={"microbatch_tokens": 1})
    plain = PlainLearner(tiny_model, learner.config)
    metrics = learner.update.update(as_samples(batch), step=0)
    plain.step(batch, rate=metrics["learning_rate"])
    assert_same_weights(learner.weights, plain.weights())
    assert learner.engine.num_forwards == 3
    assert metrics["tokens/trained"] == sum(int(t.loss_mask.sum()) for t in trajectories[:3])


@pytest.mark.parametrize(
    ("weight", "coefficients"),
    # probability 1/2 each of a table of 8: (8 / 2)^-1 at beta 1
    [(LossWeight.sign, (1.0, -1.0)), (LossWeight.corrected, (0.5 / 4, -0.25 / 4))],
)
def test_loss_weights(tiny_model: Path, trajectories, weight: LossWeight, coefficients: tuple[float, float]) -> None:
    drawn = [dataclasses.replace(trajectories[0], advantage=0.5), dataclasses.replace(trajectories[4], advantage=-0.25)]
    samples = [dataclasses.replace(sample, table_size=8) for sample in as_samples(drawn)]
    learner = Learner(tiny_model, algorithm={"loss_weight": weight})
    plain = PlainLearner(tiny_model, learner.config)
    metrics = learner.update.update(samples, step=0)
    plain.step([dataclasses.replace(t, advantage=c) for t, c in zip(drawn, coefficients, strict=True)], rate=metrics["learning_rate"])
    assert_same_weights(learner.weights, plain.weights())


@pytest.mark.parametrize("batch", ["no sample", "no advantage"])
def test_an_empty_batch_is_counted_and_changes_nothing(tiny_model: Path, trajectories, batch: str) -> None:
    learner = Learner(tiny_model)
    before = {name: value.detach().clone() for name, value in learner.weights.items()}
    flat = [dataclasses.replace(t, advantage=0.0) for t in trajectories]
    metrics = learner.update.update(as_samples(flat if batch == "no advantage" else []), step=0)
    assert metrics["update/empty"] == 1
    assert metrics["update/skipped"] == metrics["tokens/trained"] == 0
    assert "grad_norm" not in metrics
    assert_same_weights(learner.weights, before, atol=0)


def test_a_loss_that_is_not_finite_is_counted_and_changes_nothing(tiny_model: Path, trajectories) -> None:
    broken = dataclasses.replace(trajectories[0], behavior_logprobs=np.full_like(trajectories[0].behavior_logprobs, np.nan))
    learner = Learner(tiny_model)
    before = {name: value.detach().clone() for name, value in learner.weights.items()}
    metrics = learner.update.update(as_samples([broken, *trajectories[1:]]), step=0)
    assert metrics["update/skipped"] == 1
    assert metrics["tokens/trained"] == 0
    assert_same_weights(learner.weights, before, atol=0)
    assert learner.update.update(as_samples(trajectories), step=1)["update/skipped"] == 0


def test_the_learning_rate_follows_the_optimizer_steps(tiny_model: Path, trajectories) -> None:
    learner = Learner(tiny_model, algorithm={"updates_per_step": 2}, learner={"warmup_fraction": 0.1, "learning_rate": 1.0})
    samples = [sample for update in range(2) for sample in as_samples(trajectories[:1], update=update)]
    learner.update.update(samples, step=0)
    assert learner.engine.rates == [0.5, 1.0]  # the warm-up is 2 of 20 optimizer steps


def test_a_stray_update_is_refused(tiny_model: Path, trajectories) -> None:
    with pytest.raises(ValueError, match=r"updates \[1\] of a step with algorithm.updates_per_step=1"):
        Learner(tiny_model).update.update(as_samples(trajectories, update=1), step=0)


def test_the_supervised_step_equals_plain_pytorch(tiny_model: Path, trajectories) -> None:
    learner = Learner(tiny_model, algorithm={"updates_per_step": 3})
    plain = PlainLearner(tiny_model, learner.config)
    masks = [torch.from_numpy(t.loss_mask.copy()) for t in trajectories]
    expected = -torch.cat([plain.logprobs(t)[mask] for t, mask in zip(trajectories, masks, strict=True)]).mean()
    assert learner.update.supervised(trajectories, step=0) == pytest.approx(expected.item(), rel=1e-5)
    plain.apply(expected, learner.engine.rates[0])
    assert_same_weights(learner.weights, plain.weights())
    assert math.isnan(learner.update.supervised([], step=1))
    assert learner.engine.rates == [learner.config.learner.learning_rate]  # the first of num_steps, however many updates RL makes


def test_scores_come_in_the_order_of_the_trajectories(tiny_model: Path, trajectories) -> None:
    learner = Learner(tiny_model, learner={"microbatch_tokens": 100})
    plain = PlainLearner(tiny_model, learner.config)
    shuffled = [trajectories[i] for i in (5, 0, 8, 2, 0)]
    with torch.no_grad():
        for found, trajectory in zip(learner.update.score(shuffled), shuffled, strict=True):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, plain.logprobs(trajectory).numpy(), atol=1e-5)
    assert learner.update.score([]) == []
