"""The checks at vLLM's door, without vLLM."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from actors.engine.errors import EngineError, PromptRefusedError
from actors.engine.requests import completion, engine_prompt, sampling_limits, spread_seed
from algorithms.types import VersionSpan

PAD = 7
PICTURE = Image.new("RGB", (8, 8))


def test_prompt_with_a_pad_per_image_passes() -> None:
    prompt = engine_prompt(np.array([1, PAD, 2], dtype=np.int32), [PICTURE], ["hash"], PAD)
    assert prompt == {"prompt_token_ids": [1, 7, 2], "multi_modal_data": {"image": [PICTURE]}, "multi_modal_uuids": {"image": ["hash"]}}
    assert all(type(token) is int for token in prompt["prompt_token_ids"])


def test_text_needs_no_image() -> None:
    assert engine_prompt([1, 2], [], [], PAD) == {"prompt_token_ids": [1, 2]}
    assert engine_prompt([1, PAD], [], [], None) == {"prompt_token_ids": [1, 7]}


@pytest.mark.parametrize(
    ("tokens", "images", "hashes", "message"),
    [
        ([PAD, PAD, PAD, PAD], [PICTURE], ["a"], "4 image pads came with 1 images"),
        ([1, 2], [PICTURE], ["a"], "0 image pads came with 1 images"),
        ([PAD], [], [], "1 image pads came with 0 images"),
        ([PAD], [PICTURE], [], "1 images came with 0 hashes"),
        ([], [], [], "no tokens"),
    ],
)
def test_prompts_that_vllm_would_misread_are_refused(tokens: list, images: list, hashes: list, message: str) -> None:
    with pytest.raises(PromptRefusedError, match=message):
        engine_prompt(tokens, images, hashes, PAD)


def test_banned_ids_get_an_infinite_bias() -> None:
    assert sampling_limits([0, 2, 3], 5) == {"logit_bias": {1: -math.inf, 4: -math.inf}}
    assert sampling_limits(range(5), 5) == {}


def test_a_short_list_of_a_large_vocabulary_is_given_as_it_is() -> None:
    assert sampling_limits([5, 3], 2000) == {"allowed_token_ids": [3, 5]}


@pytest.mark.parametrize("allowed", [[], [-1, 2], [5]])
def test_ids_that_the_model_has_not_are_refused(allowed: list[int]) -> None:
    with pytest.raises(PromptRefusedError, match="at least one of 0 to 4"):
        sampling_limits(allowed, 5)


def test_seeds_are_repeatable_and_far_apart() -> None:
    seeds = [spread_seed(seed) for seed in range(-2, 1000)]
    assert seeds == [spread_seed(seed) for seed in range(-2, 1000)]
    assert all(0 <= seed < 2**62 for seed in seeds)
    gaps = np.diff(np.sort(np.array(seeds, dtype=np.int64)))
    assert gaps.min() > 4096, "vLLM adds the sample's index, which must not reach the next seed"


@dataclass
class Span:
    start: int
    end: int
    version: str


@dataclass
class Logprobs:
    logprobs: list[float]


@dataclass
class Sample:
    token_ids: list[int] = field(default_factory=lambda: [4, 5, 6])
    logprobs: Logprobs = field(default_factory=lambda: Logprobs([-1.0, -2.0, -3.0]))
    weight_versions: list[Span] | None = field(default_factory=lambda: [Span(0, 2, "3"), Span(2, 3, "4")])
    finish_reason: str = "stop"


class Tokenizer:
    def decode(self, token_ids: np.ndarray, skip_special_tokens: bool) -> str:
        return "".join(chr(96 + token) for token in token_ids)


def test_completion_has_arrays_and_whole_number_versions() -> None:
    made = completion(Sample(), Tokenizer(), where="here")
    assert made.token_ids.dtype == np.int32 and made.token_ids.tolist() == [4, 5, 6]
    assert made.logprobs.dtype == np.float32 and made.logprobs.tolist() == [-1.0, -2.0, -3.0]
    assert made.version_spans == (VersionSpan(start=0, end=2, version=3), VersionSpan(start=2, end=3, version=4))
    assert (made.finish_reason, made.text) == ("stop", "def")


@pytest.mark.parametrize(
    "sample",
    [
        Sample(logprobs=Logprobs([-1.0])),
        Sample(weight_versions=None),
        Sample(weight_versions=[Span(0, 2, "3")]),
        Sample(weight_versions=[Span(0, 1, "3"), Span(2, 3, "4")]),
        Sample(weight_versions=[Span(1, 3, "3")]),
    ],
)
def test_parts_that_do_not_fit_together_are_an_error(sample: Sample) -> None:
    with pytest.raises(EngineError, match="here has 3 tokens"):
        completion(sample, Tokenizer(), where="here")


def test_an_aborted_request_is_an_error() -> None:
    with pytest.raises(EngineError, match="here was ended with 'abort'"):
        completion(Sample(finish_reason="abort"), Tokenizer(), where="here")
