"""From a prompt to token ids by the model's chat template.

Owns the template's use and which ids a policy may sample. Must not know engines. A question is untrusted text: whatever it
holds, the only special tokens in the result are the template's.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from algorithms.types import IMAGE_MARKER as IMAGE_MARKER  # benchmarks take it from here
from algorithms.types import Prompt
from conf.schema import DataConfig, ModelConfig
from tasks.errors import BadPromptError
from tasks.images import image_token_count
from tasks.markers import texts_between_images

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE_PAD = "<|image_pad|>"
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", IMAGE_PAD, "<|video_pad|>")


def load_tokenizer(path: str | os.PathLike[str], *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a model folder's tokenizer.

    Args:
        path: of the model.
        trust_remote_code: run Python code that the folder brings.

    Returns:
        The tokenizer.

    Raises:
        ValueError: when it has no image pad or no chat template, so no Qwen2-VL style prompt can be made.
    """
    from transformers import AutoTokenizer  # takes seconds, which not every process that knows this module needs to spend

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if IMAGE_PAD not in tokenizer.get_vocab():
        raise ValueError(f"the tokenizer in {path} has no {IMAGE_PAD}; Qwen2-VL style models are supported")
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer in {path} has no chat template")
    return tokenizer


def allowed_token_ids(tokenizer: PreTrainedTokenizerBase, refused: Collection[str] = VISION_TOKENS) -> list[int]:
    """List the ids that a policy may sample.

    Ids past the tokenizer and image or video tokens are refused: a response that holds one can't be scored by the learner,
    whose model takes it for a place where a picture belongs.

    Args:
        tokenizer: the policy's.
        refused: image and video tokens.

    Returns:
        Increasing ids below len(tokenizer); the end of sequence is among them.
    """
    vocabulary = tokenizer.get_vocab()
    refused_ids = {vocabulary[token] for token in refused if token in vocabulary}
    return [token_id for token_id in range(len(tokenizer)) if token_id not in refused_ids]


def _begin_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that the tokenizer itself puts before every text, which a chat template may leave to it."""
    begin = tokenizer.bos_token_id
    return begin if begin is not None and tokenizer.encode("a", add_special_tokens=True)[:1] == [begin] else None


class PromptEncoder:
    """Writes prompts as token ids with exactly one image pad per picture."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        suffix: str,
        max_prompt_tokens: int,
        min_pixels: int = 0,
        max_pixels: int = 0,
        patch_size: int = 14,
        merge_size: int = 2,
        image_pad: str | None = IMAGE_PAD,
        count_tokens: Callable[[int, int], int] | None = None,
    ) -> None:
        """Keep the settings.

        Args:
            tokenizer: the policy's, with its chat template.
            suffix: put after every question.
            max_prompt_tokens: with image tokens counted.
            min_pixels: of the image processor.
            max_pixels: of the image processor.
            patch_size: of the vision tower, in pixels.
            merge_size: patches of an image token's side.
            image_pad: the token that stands for a picture; None: the model takes none.
            count_tokens: of a picture of a height and width; None: as Qwen2-VL's image processor, by the pixels above.
        """
        self._tokenizer = tokenizer
        self._suffix = suffix
        self._max_prompt_tokens = max_prompt_tokens
        pixels = {"min_pixels": min_pixels, "max_pixels": max_pixels, "patch_size": patch_size, "merge_size": merge_size}
        self._count_tokens: Callable[[int, int], int] = count_tokens or partial(image_token_count, **pixels)  # type: ignore[arg-type]
        added = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        wanted = special | set(VISION_TOKENS) | ({image_pad} if image_pad else set())
        self._special_ids = {token: token_id for token, token_id in added.items() if token in wanted}
        self._image_pad_id = self._special_ids[image_pad] if image_pad else None
        longest_first = sorted(self._special_ids, key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(token) for token in longest_first) or r"(?!)")
        self._begin = _begin_id(tokenizer)

    @classmethod
    def of_run(cls, tokenizer: PreTrainedTokenizerBase, model: ModelConfig, data: DataConfig) -> PromptEncoder:
        """The encoder of a run whose model is of the Qwen-VL family.

        Args:
            tokenizer: the policy's, with its chat template.
            model: limits and pixels.
            data: the suffix.

        Returns:
            What the rollout actors use too.
        """
        return cls(
            tokenizer,
            suffix=data.prompt_suffix,
            max_prompt_tokens=model.max_prompt_tokens,
            min_pixels=model.min_pixels,
            max_pixels=model.max_pixels,
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's."""
        return self._tokenizer

    def encode(self, prompt: Prompt, image_sizes: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
        """Write a prompt as token ids.

        Args:
            prompt: its question's "<image>" markers become pictures, in order; without markers the pictures come first.
            image_sizes: (height, width) of each picture, in pixels.

        Returns:
            [P] int32, one image pad per picture.

        Raises:
            BadPromptError: when markers and pictures disagree in number, the prompt is longer than max_prompt_tokens, or it has
                pictures and the model takes none.
        """
        ids, length = self._measured(prompt, image_sizes)
        if length > self._max_prompt_tokens:
            raise BadPromptError(f"prompt of {length} tokens, images included, is over max_prompt_tokens={self._max_prompt_tokens}")
        return np.asarray(ids, dtype=np.int32)

    def num_tokens(self, prompt: Prompt, image_sizes: Sequence[tuple[int, int]]) -> int:
        """Measure a prompt of any length.

        Args:
            prompt: as encode takes it.
            image_sizes: (height, width) of each picture, in pixels.

        Returns:
            Its tokens, images included: what max_prompt_tokens limits.

        Raises:
            BadPromptError: as encode, but for the length.
        """
        return self._measured(prompt, image_sizes)[1]

    def _measured(self, prompt: Prompt, image_sizes: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
        """The token ids, and the length that they have once the pictures are expanded."""
        if self._image_pad_id is None and prompt.image_paths:
            raise BadPromptError(f"{len(prompt.image_paths)} images for a model that takes none")
        if len(image_sizes) != len(prompt.image_paths):
            raise BadPromptError(f"{len(image_sizes)} image sizes for {len(prompt.image_paths)} images")
        ids = self._token_ids(self._content(prompt))
        pads = 0 if self._image_pad_id is None else ids.count(self._image_pad_id)
        if pads != len(image_sizes):
            raise BadPromptError(f"the chat template made {pads} image pads of {len(image_sizes)} images")
        return ids, len(ids) - pads + sum(self._count_tokens(height, width) for height, width in image_sizes)

    def _content(self, prompt: Prompt) -> list[dict[str, str]]:
        """The user message's parts: pictures and texts in order, the suffix joined to the last text."""
        texts = texts_between_images(prompt)
        texts[-1] += self._suffix
        parts = [{"type": "text", "text": texts[0]}]
        for text in texts[1:]:
            parts += [{"type": "image"}, {"type": "text", "text": text}]
        return [part for part in parts if part["type"] == "image" or part["text"]]

    def _token_ids(self, content: list[dict[str, str]]) -> list[int]:
        """Render the template around placeholders, so that the template's special tokens and the user's text stay apart."""
        texts = [part["text"] for part in content if part["type"] == "text"]
        mark = uuid.uuid4().hex
        masked: list[dict[str, Any]] = []
        for part in content:
            masked.append({"type": "text", "text": f"[{mark}]"} if part["type"] == "text" else part)
        # Templates of models without pictures know a message's content as one text.
        shown: Any = masked if self._image_pad_id is not None else f"[{mark}]"
        rendered = self._tokenizer.apply_chat_template([{"role": "user", "content": shown}], tokenize=False, add_generation_prompt=True)
        frames = str(rendered).split(f"[{mark}]")
        if len(frames) != len(texts) + 1:
            raise BadPromptError(f"the chat template shows {len(frames) - 1} of the question's {len(texts)} parts")
        ids: list[int] = []
        pending = ""  # plain text between two special tokens is tokenized as a whole, as the tokenizer itself would do
        for number, frame in enumerate(frames):
            position = 0
            for match in self._special.finditer(frame):
                ids += self._plain_ids(pending + frame[position : match.start()])
                ids.append(self._special_ids[match.group()])
                pending, position = "", match.end()
            pending += frame[position:] + (texts[number] if number < len(texts) else "")
        ids += self._plain_ids(pending)
        return ids if self._begin is None or ids[:1] == [self._begin] else [self._begin, *ids]

    def _plain_ids(self, text: str) -> list[int]:
        """Ids of text whose look-alikes of special tokens are cut in two, so that they become ordinary tokens."""
        pieces, start = [], 0
        for match in self._special.finditer(text):
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        pieces.append(text[start:])
        return [token_id for piece in pieces if piece for token_id in self._tokenizer.encode(piece, add_special_tokens=False)]
