"""The form of requests to vLLM and of its answers.

Owns the checks at the door: what vLLM would take without an error and answer wrongly. Must not know how an engine is run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actors.engine.errors import EngineError, PromptRefusedError
from algorithms.types import FinishReason, VersionSpan

if TYPE_CHECKING:
    from PIL.Image import Image

_MAX_BIASED_TOKENS = 1024  # of one request, in vLLM's model runner for GPUs


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One sampled response.

    Example: two tokens under version 3: ``Completion(token_ids=[51, 2], logprobs=[-0.4, -0.1],
    version_spans=(VersionSpan(start=0, end=2, version=3),), finish_reason="stop", text="a")``.
    """

    token_ids: NDArray[np.int32]  # [R], the end-of-sequence token included when it was sampled
    logprobs: NDArray[np.float32]  # [R] nats, under the sampling distribution (temperature, top-p and allowed ids applied)
    version_spans: tuple[VersionSpan, ...]  # cover [0, R) without gaps
    finish_reason: FinishReason
    text: str  # without special tokens
    num_prompt_tokens: int = 0  # image tokens included
    num_cached_tokens: int = 0  # of the prompt's, those whose keys and values a prefix cache had


def engine_prompt(
    token_ids: NDArray[np.int32] | Sequence[int], images: Sequence[Image], image_hashes: Sequence[str], image_token_id: int | None
) -> dict[str, Any]:
    """vLLM's form of a prompt.

    Args:
        token_ids: [P], exactly one image pad per image. An expanded prompt is refused: vLLM would expand it again, without an error.
        images: in the order of the pads.
        image_hashes: one per image.
        image_token_id: the image pad; None: the model knows none.

    Returns:
        A TokensPrompt.

    Raises:
        PromptRefusedError: when pads, images and hashes are not equally many, or there are no tokens.
    """
    ids = [int(token) for token in token_ids]
    if not ids:
        raise PromptRefusedError("a prompt of no tokens")
    pads = ids.count(image_token_id) if image_token_id is not None else 0
    if pads != len(images):
        raise PromptRefusedError(
            f"a prompt with {pads} image pads came with {len(images)} images; give one pad per image, the engine expands them"
        )
    if len(image_hashes) != len(images):
        raise PromptRefusedError(f"{len(images)} images came with {len(image_hashes)} hashes")
    prompt: dict[str, Any] = {"prompt_token_ids": ids}
    if images:
        prompt["multi_modal_data"] = {"image": list(images)}
        prompt["multi_modal_uuids"] = {"image": list(image_hashes)}
    return prompt


def sampling_limits(allowed_token_ids: Sequence[int], vocab_size: int) -> dict[str, Any]:
    """How vLLM is told which ids may be sampled: the banned ones get an infinitely negative bias.

    Its allowed_token_ids would do the same, but takes at most 1024 ids on GPUs, and a real vocabulary's 150,000 ids cost the
    engine 60 ms for every response.

    Args:
        allowed_token_ids: at least one.
        vocab_size: of the model, ids past the tokenizer's end included.

    Returns:
        Keyword arguments of SamplingParams.

    Raises:
        PromptRefusedError: for no ids, or ids that the model has not.
    """
    allowed = set(allowed_token_ids)
    if not allowed or min(allowed) < 0 or max(allowed) >= vocab_size:
        raise PromptRefusedError(
            f"the allowed ids must be at least one of 0 to {vocab_size - 1}, got {len(allowed)} up to {max(allowed, default=None)}"
        )
    banned = [token_id for token_id in range(vocab_size) if token_id not in allowed]
    if len(banned) > _MAX_BIASED_TOKENS:
        return {"allowed_token_ids": sorted(allowed)}
    return {"logit_bias": dict.fromkeys(banned, -math.inf)} if banned else {}


def spread_seed(seed: int) -> int:
    """A seed far from those of neighbouring requests.

    vLLM gives sample i of a request the seed + i, so requests with the seeds 1, 2, 3... would share most of their random streams.

    Args:
        seed: any integer.

    Returns:
        From 0 to 2**62 - 1, which leaves room for + i in vLLM's signed 64 bits.
    """
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def refuse_unfinished(sample: Any, where: str) -> None:
    """Refuse what the engine didn't finish, as when it is closed meanwhile.

    Args:
        sample: vLLM's CompletionOutput.
        where: begins the error message.

    Raises:
        EngineError: when it was ended by something else than a stop token or the limit.
    """
    if sample.finish_reason not in ("stop", "length"):
        raise EngineError(f"{where} was ended with {sample.finish_reason!r}")


def completion(sample: Any, tokenizer: Any, *, where: str, num_prompt_tokens: int = 0, num_cached_tokens: int = 0) -> Completion:
    """Our form of vLLM's CompletionOutput.

    Args:
        sample: finished, with flat log-probs.
        tokenizer: decodes the text.
        where: begins the error message.
        num_prompt_tokens: of the request.
        num_cached_tokens: of the request, by vLLM's count.

    Returns:
        With arrays of one length and spans that cover them.

    Raises:
        EngineError: when the request was ended by something else than a stop token or the limit, or the parts don't fit together.
    """
    refuse_unfinished(sample, where)
    token_ids = np.asarray(sample.token_ids, dtype=np.int32)
    logprobs = np.asarray(sample.logprobs.logprobs, dtype=np.float32)
    spans = tuple(VersionSpan(start=span.start, end=span.end, version=int(span.version)) for span in sample.weight_versions or ())
    borders = [0, *(span.end for span in spans)]
    if len(logprobs) != len(token_ids) or [span.start for span in spans] != borders[:-1] or borders[-1] != len(token_ids):
        raise EngineError(f"{where} has {len(token_ids)} tokens, {len(logprobs)} log-probs and the spans {spans}")
    return Completion(
        token_ids=token_ids,
        logprobs=logprobs,
        version_spans=spans,
        finish_reason=sample.finish_reason,
        text=tokenizer.decode(token_ids, skip_special_tokens=True),
        num_prompt_tokens=num_prompt_tokens,
        num_cached_tokens=num_cached_tokens,
    )
