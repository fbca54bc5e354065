"""The quickstart's policy: a tiny Qwen2.5-VL of random weights, next to its tokenizer and processor.

Owns the sizes. Must not know how it is trained or served.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.utils import logging

from conf.schema import DataConfig
from tasks.quickstart.data import QuickstartSizes, quickstart_questions
from tasks.quickstart.tokenizer import save_processor, train_tokenizer

_VOCAB_SIZE = 800
_CORPUS_SEED = 0  # fixed: token ids are the same for every seed of the weights
_CORPUS_SIZES = QuickstartSizes(shapes=4000, digits=2000, arithmetic=2000)
_HIDDEN = 192

# Rethinking triggers and forms of an answer, so that they are few tokens too.
_PHRASES = (
    "Wait, let me verify this. Wait, I should double check the answer. Let me check again. Is this right? Is it correct?",
    "Wait, there might be a mistake. Wait, that does not look right. Let me correct it. Let me think again.",
    "Wait, does it seem right? Wait, let's double check. Did I read the picture correctly? Did I miss something?",
    "The final answer is A. Answer: B. The answer is <answer>C</answer>. So the answer is D. Yes. No. Hence, therefore, because",
)


def build_tiny_model(folder: str | os.PathLike[str], seed: int = 1, *, prompt_suffix: str = DataConfig.prompt_suffix) -> Path:
    """Make a Qwen2.5-VL of 2.5 million random weights with a tokenizer for the quickstart's questions.

    Args:
        folder: of the model; made when missing.
        seed: of the weights; the tokenizer doesn't depend on it.
        prompt_suffix: the run's data.prompt_suffix, whose sentence becomes one token.

    Returns:
        The folder; AutoModelForImageTextToText, AutoProcessor and vLLM load it.

    Raises:
        FileExistsError: when the folder is there and isn't empty.
        ModuleNotFoundError: when easy-vqa or scikit-learn isn't installed.
    """
    target = Path(folder)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} isn't empty; a model folder is written once")
    logging.disable_progress_bar()  # of saving, which takes a blink
    target.parent.mkdir(parents=True, exist_ok=True)
    questions = quickstart_questions("train", seed=_CORPUS_SEED, sizes=_CORPUS_SIZES)
    texts = [text for question in questions for text in (question.text.replace("<image>", ""), question.worked, question.rethink)]
    tokenizer = train_tokenizer([*texts, *_PHRASES * 100], vocab_size=_VOCAB_SIZE, instruction=prompt_suffix.strip())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(_model_config(tokenizer)).to(torch.float32)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        new = Path(scratch) / "new"
        save_processor(new, tokenizer)
        model.save_pretrained(new, safe_serialization=True)
        os.replace(new, target)
    return target


def _model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens + list(tokenizer.get_added_vocab())}
    ends = {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,  # more rows than tokens, as published checkpoints have
            "hidden_size": _HIDDEN,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            **ends,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": _HIDDEN,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        **ends,
    )
