from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from learner.packing import pack_rows
from learner.policy import PolicyModel
from tasks.prompts import allowed_token_ids, load_tokenizer
from tests.tiny_learner import PlainLearner, make_collator, make_config, make_trajectories, noise_image


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> PlainLearner:
    return PlainLearner(tiny_model, make_config())


@pytest.fixture(scope="module")
def policy(tiny_model: Path, plain: PlainLearner) -> PolicyModel:
    return PolicyModel(plain.model, temperature=0.7, allowed_token_ids=allowed_token_ids(load_tokenizer(tiny_model)))


@pytest.fixture(scope="module")
def batches(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("images")
    small, other, large = noise_image(folder, 1), noise_image(folder, 2), noise_image(folder, 3, side=112)
    prompts = {
        "text only": [(), ()],
        "one image": [(small,), (large,)],
        "several images": [(small, large), (large, other, small)],
        "shared images": [(small,), (small,), (other, small), (small, small)],
        "mixed": [(), (small,), (), (large,)],
    }
    return {
        name: [t for number, images in enumerate(groups) for t in make_trajectories(tiny_model, images, number=number, samples=3)]
        for name, groups in prompts.items()
    }


def scored(policy: PolicyModel, tiny_model: Path, trajectories, *, max_row_tokens: int, **options) -> list[np.ndarray]:
    collator = make_collator(tiny_model)
    rows = pack_rows(trajectories, [collator.prompt_length(t) for t in trajectories], max_row_tokens=max_row_tokens)
    batch = collator.collate(trajectories, rows, masked=True)
    with torch.no_grad():
        logprobs = policy(batch, **options)
    return [logprobs[batch.samples == index].numpy() for index in range(len(trajectories))]


@pytest.mark.parametrize("max_row_tokens", [4096, 1], ids=["shared prompts", "a row a response"])
@pytest.mark.parametrize("name", ["text only", "one image", "several images", "shared images", "mixed"])
@torch.no_grad()
def test_equals_the_plain_forward_pass(policy, plain, batches, tiny_model, name: str, max_row_tokens: int) -> None:
    trajectories = batches[name]
    for found, trajectory in zip(scored(policy, tiny_model, trajectories, max_row_tokens=max_row_tokens), trajectories, strict=True):
        np.testing.assert_allclose(found, plain.logprobs(trajectory, temperature=0.7).numpy(), atol=1e-5)


@torch.no_grad()
def test_another_distribution(policy, plain, batches, tiny_model) -> None:
    trajectories = batches["mixed"]
    found = scored(policy, tiny_model, trajectories, max_row_tokens=4096, temperature=1.0, mask_banned=False)
    np.testing.assert_allclose(found[0], plain.logprobs(trajectories[0], masked=False).numpy(), atol=1e-5)
    masked = scored(policy, tiny_model, trajectories, max_row_tokens=4096, temperature=1.0)
    assert (masked[0] > found[0]).all(), "banned ids' probability goes to the others"


def gradients(policy: PolicyModel, tiny_model: Path, trajectories, *, max_row_tokens: int) -> dict[str, torch.Tensor]:
    collator = make_collator(tiny_model)
    rows = pack_rows(trajectories, [collator.prompt_length(t) for t in trajectories], max_row_tokens=max_row_tokens)
    policy.zero_grad()
    policy(collator.collate(trajectories, rows)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}


def test_sharing_a_prompt_leaves_the_gradient_as_it_is(policy, batches, tiny_model) -> None:
    shared = gradients(policy, tiny_model, batches["shared images"], max_row_tokens=4096)
    alone = gradients(policy, tiny_model, batches["shared images"], max_row_tokens=1)
    for name, gradient in alone.items():
        torch.testing.assert_close(shared[name], gradient, atol=2e-4 * float(gradient.abs().max()), rtol=0, msg=name)


def test_chunks_of_logits_leave_values_and_gradient_as_they_are(policy, plain, batches, tiny_model) -> None:
    vocabulary = plain.model.config.text_config.vocab_size
    chunked = PolicyModel(plain.model, temperature=0.7, logits_bytes=4 * vocabulary * 5)
    chunked.banned = policy.banned
    trajectories = batches["one image"]
    for left, right in zip(
        scored(policy, tiny_model, trajectories, max_row_tokens=4096),
        scored(chunked, tiny_model, trajectories, max_row_tokens=4096),
        strict=True,
    ):
        np.testing.assert_allclose(left, right, atol=1e-6)
    whole = gradients(policy, tiny_model, trajectories, max_row_tokens=4096)
    for name, gradient in gradients(chunked, tiny_model, trajectories, max_row_tokens=4096).items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-4 * float(whole[name].abs().max()), rtol=0, msg=name)


def test_the_vision_tower_runs_once_over_distinct_images(policy, batches, tiny_model) -> None:
    seen = []
    hook = policy.model.model.visual.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    try:
        scored(policy, tiny_model, batches["shared images"], max_row_tokens=1)  # 12 rows with 18 pictures, of two kinds
    finally:
        hook.remove()
    assert seen == [2 * 16]


def test_gradient_checkpointing_and_a_frozen_tower(tiny_model: Path, batches, policy) -> None:
    allowed = allowed_token_ids(load_tokenizer(tiny_model))
    other = PolicyModel.load(
        tiny_model, dtype=torch.float32, temperature=0.7, allowed_token_ids=allowed, gradient_checkpointing=True, freeze_vision=True
    )
    collator = make_collator(tiny_model)
    trajectories = batches["one image"]
    rows = pack_rows(trajectories, [collator.prompt_length(t) for t in trajectories], max_row_tokens=4096)
    other(collator.collate(trajectories, rows)).sum().backward()
    expected = gradients(policy, tiny_model, trajectories, max_row_tokens=4096)
    for name, parameter in other.named_parameters():
        if "visual" in name:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4 * float(expected[name].abs().max()), rtol=0, msg=name)


def test_sliding_windows_are_refused(tiny_model: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    model.config.text_config.layer_types = ["sliding_attention"] * 4
    with pytest.raises(ValueError, match="sliding-window"):
        PolicyModel(model, temperature=1.0)
