"""Tiny models of several architectures, made from their configurations, each with the tokenizer and processor that its folder needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tasks.quickstart import build_tiny_model
from tasks.quickstart.tokenizer import CHAT_TEMPLATE, train_tokenizer

PATCH_SIZE = 16
TEXTS = ["How many circles are in the picture? The answer is \\boxed{3}.", "What is 3+5? Answer: 8"] * 20

# As LLaVA 1.5's: no begin token in the template, the tokenizer puts it there.
_LLAVA_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- message['role'].upper() + ': ' -}}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{{- ' ' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)
# A text-only one: content is one text, and anything else would be printed as Python prints it.
_TEXT_TEMPLATE = (
    "{%- for message in messages -%}{{- '[' + message['role'] + '] ' + (message['content'] | string) + '\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '[assistant] ' -}}{%- endif -%}"
)


def _llama_tokenizer(template: str, *, image_token: str | None) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", *([image_token] if image_token else [])]
    core.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    )
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


def _llama_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_llava(folder: Path) -> Path:
    """LLaVA 1.5 in small: CLIP and Llama, every picture becomes 16 tokens."""
    tokenizer = _llama_tokenizer(_LLAVA_TEMPLATE, image_token="<image>")
    size = {"height": 64, "width": 64}
    image_processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=size)
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_TEMPLATE,
    )
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64}
    config = LlavaConfig(
        vision_config={**vision, "patch_size": PATCH_SIZE, "projection_dim": 32, "model_type": "clip_vision_model"},
        text_config=_llama_config(tokenizer).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    _save(folder, LlavaForConditionalGeneration(config), processor)
    weights = load_file(folder / "model.safetensors")  # under the names that published checkpoints have, which vLLM knows
    published = {re.sub(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name): value for name, value in weights.items()}
    save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def build_qwen3_vl(folder: Path) -> Path:
    """Qwen3-VL in small: patches of 16 pixels, deep-stacked vision features, interleaved multimodal positions."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=400, instruction="")
    pixels = {"min_pixels": 32 * 32, "max_pixels": 128 * 128, "patch_size": PATCH_SIZE}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
    ids = {
        token: tokenizer.convert_tokens_to_ids(token) for token in ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    }
    ends = {"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
            **ends,
        },
        vision_config={
            "depth": 3, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "patch_size": PATCH_SIZE, "out_hidden_size": 64,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        **ends,
    )  # fmt: skip
    return _save(folder, Qwen3VLForConditionalGeneration(config), processor)


def build_llama(folder: Path) -> Path:
    """A text-only Llama in small."""
    tokenizer = _llama_tokenizer(_TEXT_TEMPLATE, image_token=None)
    return _save(folder, LlamaForCausalLM(_llama_config(tokenizer)), tokenizer)


def _save(folder: Path, model: torch.nn.Module, processor: object) -> Path:
    """Weights large enough that greedy choices are no ties."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.08 * torch.randn(parameter.shape, generator=generator))
    model.to(torch.float32).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "qwen2_5_vl": build_tiny_model, "qwen3_vl": build_qwen3_vl, "llava": build_llava, "llama": build_llama,
}  # fmt: skip
