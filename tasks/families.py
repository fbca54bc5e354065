"""What a model's folder says about its prompts: where a picture stands in the text, and which tokens pictures take.

Owns the differences between architectures, as far as prompts see them: the chat template and the processor of the folder decide. Must
not know engines. The learner trains Qwen2-VL style models only and asks tasks.prompts.load_tokenizer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.images import image_token_count
from tasks.prompts import IMAGE_PAD, VISION_TOKENS, allowed_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CountTokens = Callable[[int, int], int]
"""Tokens of a picture of so many rows and columns of pixels."""

# What processors call their picture tokens: the one that a prompt holds once a picture comes first.
_PAD_NAMES = ("image_token", "boi_token")
_PICTURE_NAMES = (*_PAD_NAMES, "eoi_token", "video_token", "audio_token", "vision_start_token", "vision_end_token")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptForm:
    """How a model takes prompts.

    Example: a LLaVA has ``image_pad="<image>"``; a text-only model has None.
    """

    tokenizer: PreTrainedTokenizerBase
    image_pad: str | None  # stands in a prompt once a picture; None: the model takes no pictures
    allowed_token_ids: list[int]  # that a response may hold
    count_tokens: CountTokens | None  # None: only the engine knows how many tokens a picture takes

    @property
    def image_pad_id(self) -> int | None:
        """The id of the pad."""
        return None if self.image_pad is None else int(self.tokenizer.convert_tokens_to_ids(self.image_pad))


def read_form(path: str | os.PathLike[str], *, min_pixels: int, max_pixels: int, trust_remote_code: bool = False) -> PromptForm:
    """Find out how the model of a folder takes prompts.

    Args:
        path: Hugging Face folder.
        min_pixels: of a Qwen2-VL style image processor; other ones resize as their folder says.
        max_pixels: the same.
        trust_remote_code: run Python code that the folder brings.

    Returns:
        The form.

    Raises:
        ValueError: when there is no chat template, or it writes no picture although the model takes pictures.
    """
    from transformers import AutoConfig, AutoProcessor, AutoTokenizer  # takes seconds

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer in {path} has no chat template")
    if IMAGE_PAD in tokenizer.get_vocab() and resizes_by_pixels(path):
        settings = image_processor_settings(path)
        sides = {name: int(settings[name]) for name in ("patch_size", "merge_size") if name in settings}
        count = partial(image_token_count, min_pixels=min_pixels, max_pixels=max_pixels, **sides)
        return PromptForm(tokenizer=tokenizer, image_pad=IMAGE_PAD, allowed_token_ids=allowed_token_ids(tokenizer), count_tokens=count)
    if not image_processor_settings(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        if hasattr(config, "vision_config"):
            raise ValueError(f"the model in {path} takes pictures, but there is no image processor in its folder")
        return PromptForm(tokenizer=tokenizer, image_pad=None, allowed_token_ids=allowed_token_ids(tokenizer), count_tokens=None)
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    tokens = {str(token) for name in _PICTURE_NAMES if (token := getattr(processor, name, None))}
    return PromptForm(
        tokenizer=tokenizer,
        image_pad=_image_pad(tokenizer, processor, path),
        allowed_token_ids=allowed_token_ids(tokenizer, refused=tokens | set(VISION_TOKENS)),
        count_tokens=_counting(processor),
    )


def image_processor_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a folder says about its image processor.

    Args:
        path: Hugging Face folder.

    Returns:
        The settings; empty when there is no image processor.
    """
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        try:
            settings = json.loads(Path(path, name).read_text())
        except (OSError, ValueError):
            continue
        found = settings.get(key, {}) if key else settings
        if found.get("image_processor_type"):
            return dict(found)
    return {}


def resizes_by_pixels(path: str | os.PathLike[str]) -> bool:
    """Whether a folder's image processor is Qwen2-VL's, which takes a lower and an upper number of pixels.

    Args:
        path: Hugging Face folder.

    Returns:
        True for Qwen2-VL, Qwen2.5-VL and Qwen3-VL.
    """
    return str(image_processor_settings(path).get("image_processor_type", "")).startswith("Qwen2VL")


def _image_pad(tokenizer: PreTrainedTokenizerBase, processor: Any, path: str | os.PathLike[str]) -> str:
    """The picture token that the chat template writes once a picture."""
    content = [{"type": "image"}, {"type": "text", "text": "?"}, {"type": "image"}]
    rendered = str(tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True))
    for name in _PAD_NAMES:
        token = getattr(processor, name, None)
        if token and rendered.count(str(token)) == 2:
            return str(token)
    raise ValueError(f"the chat template in {path} doesn't write one of its processor's picture tokens for a picture")


def _counting(processor: Any) -> CountTokens | None:
    """The processor's own count, which vLLM relies on too, where it has one."""
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    if count is None:
        return None

    def tokens(height: int, width: int) -> int:
        return int(count(image_sizes=[(height, width)])["num_image_tokens"][0])

    return tokens
