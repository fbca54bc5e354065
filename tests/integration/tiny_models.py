"""A tiny Qwen2.5-VL with tied or untied embeddings, and what Hugging Face says about it: the judge of the engine's log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from conf.schema import Device, Dtype, ModelConfig, RolloutConfig
from tasks.quickstart import build_tiny_model

MODEL = ModelConfig(dtype=Dtype.float32, max_prompt_tokens=192, max_response_tokens=64, min_pixels=56 * 56, max_pixels=112 * 112)
ROLLOUT = RolloutConfig(max_concurrent_sequences=64, max_batched_tokens=2048, kv_cache_bytes=64 * 2**20, timeout_s=60.0)
DEVICE = Device.cpu


def build(folder: Path, *, tied: bool) -> Path:
    """Write the quickstart's model; untied: with an output layer of its own."""
    build_tiny_model(folder, seed=1)
    if not tied:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 0.02 * torch.randn_like(model.lm_head.weight))
        model.save_pretrained(folder)
    return folder


def perturb(model: torch.nn.Module, scale: float = 0.05) -> None:
    """Change every weight, as an optimizer step would, only more."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights that later changes of the model don't reach."""
    return {name: value.clone() for name, value in model.state_dict().items()}


@dataclass
class Judge:
    """Hugging Face's float32 model of a folder, with a prompt that holds a picture."""

    folder: Path

    def __post_init__(self) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(self.folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        size = {"shortest_edge": MODEL.min_pixels, "longest_edge": MODEL.max_pixels}
        self.processor = AutoImageProcessor.from_pretrained(self.folder, size=size)
        self.pil_processor = Qwen2VLImageProcessorPil.from_pretrained(self.folder, size=size)
        self.image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8))
        self.image_token_id = self.model.config.image_token_id

    @property
    def named_parameters(self) -> list[tuple[str, torch.Tensor]]:
        """What a weight source would give: a tied output layer is named once, by the embedding."""
        return [(name, parameter.detach()) for name, parameter in self.model.named_parameters()]

    def prompt(self, question: str = "What is shown?") -> list[int]:
        """Token ids with one image pad."""
        text = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
        return self.tokenizer(text)["input_ids"]

    def logprobs(
        self,
        prompt: Sequence[int],
        response: Sequence[int],
        *,
        allowed: Sequence[int] | None = None,
        temperature: float = 1.0,
        pil: bool = False,
    ) -> np.ndarray:
        """[R] log-probs of the response, by a plain forward pass over the expanded prompt."""
        rows = self.distributions(prompt, response, allowed=allowed, temperature=temperature, pil=pil)
        return rows[np.arange(len(response)), [int(token) for token in response]]

    @torch.no_grad()
    def distributions(
        self,
        prompt: Sequence[int],
        response: Sequence[int],
        *,
        allowed: Sequence[int] | None = None,
        temperature: float = 1.0,
        pil: bool = False,
    ) -> np.ndarray:
        """[R, V] log-probs at the response's positions, likewise."""
        pixels = (self.pil_processor if pil else self.processor)(images=[self.image], return_tensors="pt")
        pads = int(pixels["image_grid_thw"].prod()) // self.model.config.vision_config.spatial_merge_size**2
        expanded = [token for token in prompt for _ in range(pads if token == self.image_token_id else 1)]
        ids = torch.tensor([[*expanded, *(int(token) for token in response)]])
        logits = self.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == self.image_token_id).int(),
            **pixels,
        ).logits[0, -len(response) - 1 : -1]
        logits = logits.float() / temperature
        if allowed is not None:
            banned = torch.ones(logits.shape[-1], dtype=torch.bool)
            banned[list(allowed)] = False
            logits = logits.masked_fill(banned, -torch.inf)
        return logits.log_softmax(-1).numpy()
