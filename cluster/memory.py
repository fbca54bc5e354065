"""How much memory each process of a run needs, estimated from the model's configuration without loading weights.

Owns the formulas. Must not know Ray. Weights, gradients, optimizer and KV cache are exact; activations and logits are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5_VLConfig

from conf.loading import ConfigError
from conf.schema import Config, Device, Dtype
from learner.policy import LOGITS_BYTES

LOGIT_COPIES = 3  # of a chunk of logits while its loss is differentiated: the model's own, a float32 copy, and the copy's gradient

_QWEN_VISION: dict[str, Any] = {"depth": 32, "hidden_size": 1280, "num_heads": 16}
KNOWN_MODELS: dict[str, dict[str, Any]] = {
    name: {
        "text_config": {
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocab,
        },
        "vision_config": {**_QWEN_VISION, "intermediate_size": vision_intermediate, "out_hidden_size": hidden},
        "tie_word_embeddings": tied,
    }
    for name, hidden, intermediate, layers, heads, kv_heads, vocab, vision_intermediate, tied in [
        ("Qwen2.5-VL-3B-Instruct", 2048, 11008, 36, 16, 2, 151936, 3420, True),
        ("Qwen2.5-VL-7B-Instruct", 3584, 18944, 28, 28, 4, 152064, 3420, False),
        ("Qwen2.5-VL-32B-Instruct", 5120, 27648, 64, 40, 8, 152064, 3456, False),
        ("Qwen2.5-VL-72B-Instruct", 8192, 29568, 80, 64, 8, 152064, 3456, False),
    ]
}
"""Published geometries, so that a plan can be made where the weights are not: by the name of the model's folder."""


@dataclass(frozen=True, kw_only=True)
class ModelGeometry:
    """What the formulas need of a model."""

    parameters: int
    vision_parameters: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    kv_heads: int
    head_dim: int
    vocab_size: int


def geometry_of(model_path: str) -> ModelGeometry:
    """Count a model's parameters without its weights.

    Args:
        model_path: a Hugging Face folder, or a path that ends in one of KNOWN_MODELS.

    Returns:
        Its geometry.

    Raises:
        ConfigError: when there is neither.
    """
    path = Path(model_path)
    if (path / "config.json").is_file():
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    elif path.name in KNOWN_MODELS:
        config = Qwen2_5_VLConfig(**KNOWN_MODELS[path.name])
    else:
        known = ", ".join(KNOWN_MODELS)
        raise ConfigError(f"model.path = {model_path!r} is no model folder, and {path.name!r} is none of the known models: {known}.")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    text = config.get_text_config()
    vision = getattr(model.model, "visual", None)
    return ModelGeometry(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vision_parameters=sum(parameter.numel() for parameter in vision.parameters()) if vision is not None else 0,
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocab_size=text.vocab_size,
    )


def learner_memory(model: ModelGeometry, config: Config) -> dict[str, float]:
    """Estimate what one learner rank holds at its peak.

    Under ZeRO the optimizer state (stage 1), the gradients (2) and the weights (3) are shared out over the ranks (arXiv 1910.02054,
    section 5). In bfloat16 the optimizer keeps float32 weights besides Adam's two moments.

    Args:
        model: that is trained.
        config: of the run.

    Returns:
        Bytes by what they are for: weights, gradients, optimizer, activations (estimate), logits (estimate).
    """
    settings = config.learner
    width = _width(config)
    trained = model.parameters - (model.vision_parameters if config.model.freeze_vision else 0)

    def share(stage: int) -> int:
        return settings.num_ranks if settings.zero_stage >= stage else 1

    tokens = settings.microbatch_tokens
    # of one layer: norms, queries, keys, values, attention's output, residuals; gate, up, activation, their product
    layer = tokens * width * (8 * model.hidden_size + 4 * model.intermediate_size)
    kept = tokens * width * model.hidden_size * model.num_layers
    return {
        "weights": width * model.parameters / share(3),
        "gradients": width * trained / share(2),
        "optimizer": (12 if config.model.dtype is Dtype.bfloat16 else 8) * trained / share(1),
        "activations": float(kept + layer if settings.gradient_checkpointing else layer * model.num_layers),
        "logits": float(LOGIT_COPIES * min(LOGITS_BYTES, 4 * tokens * model.vocab_size)),
    }


def engine_memory(model: ModelGeometry, config: Config) -> dict[str, float]:
    """Work out what one device of a rollout engine holds.

    Args:
        model: that samples.
        config: of the run.

    Returns:
        Bytes: weights, kv_cache (on a GPU what gpu_memory_utilization leaves). Without a unit: kv_cache_tokens of the whole engine.
    """
    rollout = config.rollout
    weights = _width(config) * model.parameters / rollout.tensor_parallel_size
    if config.cluster.device is Device.gpu:
        cache = max(0.0, rollout.gpu_memory_utilization * config.cluster.gpu_memory_bytes - weights)
    else:
        cache = float(rollout.kv_cache_bytes)
    # more devices than key-value heads: the heads are doubled, so a device never holds less than one
    heads = max(1.0, model.kv_heads / rollout.tensor_parallel_size)
    bytes_per_token = 2 * model.num_layers * heads * model.head_dim * _width(config)
    return {"weights": weights, "kv_cache": cache, "kv_cache_tokens": cache // bytes_per_token}


def _width(config: Config) -> int:
    return 2 if config.model.dtype is Dtype.bfloat16 else 4
