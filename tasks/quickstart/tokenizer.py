"""The quickstart model's tokenizer and image processor, in the form that AutoTokenizer and AutoProcessor load.

Owns the special tokens and the chat template. Must not know the model's weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

MIN_PIXELS = 28 * 28  # 1 image token
MAX_PIXELS = 112 * 112  # 16 image tokens; a 64x64 picture becomes 56x56

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# What the Qwen2.5-VL template does with one image per marker and no default system prompt: text, then pictures in place.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}"
    "{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'video' -%}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'text' -%}"
    "{{- part['text'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- endif -%}"
)

# Digits stand alone, so that numbers have one form; a word takes the space before it along; the box opens with one token.
_WORDS = r" ?\\boxed\{|\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, instruction: str) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with Qwen's special tokens.

    Args:
        texts: questions and worked answers.
        vocab_size: upper bound of the number of ids, special tokens included.
        instruction: the sentence that every prompt ends in; it becomes one token, which saves a third of a short prompt.

    Returns:
        The tokenizer, its chat template included; "<|im_end|>" ends a response.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern=Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - bool(instruction),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    frame = ["user\n", "assistant\n", f"\n\n{instruction}", "\\boxed{}"]
    core.train_from_iterator([*texts, *frame * 100], trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    if instruction:
        core.add_tokens([AddedToken(instruction, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_processor(folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the tokenizer with Qwen2.5-VL's image processor.

    Args:
        folder: made when missing.
        tokenizer: of train_tokenizer.
    """
    pixels = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    image_processor = Qwen2VLImageProcessor(**pixels)
    processor = Qwen2_5_VLProcessor(
        image_processor=image_processor, tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor(**pixels), chat_template=CHAT_TEMPLATE
    )
    processor.save_pretrained(folder)
    image_processor.save_pretrained(folder)  # preprocessor_config.json, the form that readers of older folders expect
