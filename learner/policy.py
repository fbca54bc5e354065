"""The policy: a Hugging Face Qwen2.5-VL that answers with the log-probs of response tokens.

Owns the forward pass from a micro-batch to log-probs under the sampling distribution. Must not know the loss, DeepSpeed or replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from learner.collate import MicroBatch

LOGITS_BYTES = 256 * 2**20
"""Bound on one chunk of float32 logits; more tokens than that hold are done chunk by chunk, each recomputed in the backward pass."""


class PolicyModel(nn.Module):
    """Log-probs of response tokens under the distribution they are sampled from: temperature and banned ids applied.

    Three things make it cheaper than the plain forward pass, and none changes the result: the vision tower runs once per
    distinct image, a prompt is computed once for the responses of its row, and logits exist at predicted positions only.

    Args:
        model: Qwen2_5_VLForConditionalGeneration.
        temperature: of the sampling distribution.
        allowed_token_ids: ids that can be sampled; the others' probability is 0 and these are renormalised. None: all.
        logits_bytes: bound on the float32 logits alive at once.

    Raises:
        ValueError: when the model uses sliding-window attention.
    """

    def __init__(self, model: Any, *, temperature: float, allowed_token_ids: Sequence[int] | None = None, logits_bytes: int = LOGITS_BYTES):
        super().__init__()
        if "sliding_attention" in model.config.text_config.layer_types:
            raise ValueError("the model uses sliding-window attention, which the learner's shared-prompt mask does not cover")
        self.model = model
        self.temperature = temperature
        vocab_size = model.config.text_config.vocab_size
        banned = sorted(set(range(vocab_size)) - set(range(vocab_size) if allowed_token_ids is None else allowed_token_ids))
        self.register_buffer("banned", torch.tensor(banned, dtype=torch.int64), persistent=False)
        self._chunk_tokens = max(1, logits_bytes // (4 * vocab_size))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype,
        temperature: float,
        allowed_token_ids: Sequence[int] | None = None,
        gradient_checkpointing: bool = False,
        freeze_vision: bool = False,
        trust_remote_code: bool = False,
    ) -> PolicyModel:
        """Read a Hugging Face folder.

        Args:
            path: the folder.
            dtype: of the weights.
            temperature: of the sampling distribution.
            allowed_token_ids: ids that can be sampled; None: all.
            gradient_checkpointing: recompute activations in the backward pass.
            freeze_vision: keep the vision tower as it is.
            trust_remote_code: run the folder's own model code.

        Returns:
            The policy, on the CPU, in training mode.
        """
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            use_safetensors=True,  # other formats are pickles, which run code
        )
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if freeze_vision:
            model.model.visual.requires_grad_(False)
        return cls(model, temperature=temperature, allowed_token_ids=allowed_token_ids).train()

    def forward(self, batch: MicroBatch, *, temperature: float | None = None, mask_banned: bool = True) -> torch.Tensor:
        """Compute the log-probs of the micro-batch's predicted tokens.

        Args:
            batch: on the model's device.
            temperature: another one than the sampling distribution's; None: that one.
            mask_banned: False: under the distribution over the whole vocabulary.

        Returns:
            [N] float32, nats.
        """
        core = self.model.model
        embeddings = core.get_input_embeddings()(batch.input_ids)
        if batch.pixel_values is not None:
            embeddings = self._with_images(embeddings, batch)
        hidden = core.language_model(
            inputs_embeds=embeddings,
            position_ids=self._positions(batch),
            attention_mask={"full_attention": self._attention_mask(batch, embeddings.dtype)},
            use_cache=False,
        ).last_hidden_state
        predicting = hidden.flatten(0, 1).index_select(0, batch.logit_positions)
        banned = self.banned if mask_banned else self.banned[:0]
        return self._token_logprobs(predicting, batch.labels, self.temperature if temperature is None else temperature, banned)

    def _with_images(self, embeddings: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """Each distinct image through the vision tower once, its features to every place where it occurs."""
        visual = self.model.model.visual
        features = visual(batch.pixel_values.to(embeddings.dtype), grid_thw=batch.image_grid_thw).pooler_output
        occurrences = features.index_select(0, batch.image_feature_rows).to(embeddings.dtype)
        return embeddings.flatten(0, 1).index_copy(0, batch.image_token_positions, occurrences).view_as(embeddings)

    @torch.no_grad()
    def _positions(self, batch: MicroBatch) -> torch.Tensor:
        """[3, B, T] rope positions: the model's own for the prompt, each response continuing where its prompt ends."""
        in_prompt = batch.segment_ids == 0
        types = torch.zeros_like(batch.input_ids)
        types.view(-1)[batch.image_token_positions] = 1
        grids = None if batch.image_grid_thw is None else batch.image_grid_thw[batch.image_index]
        positions, deltas = self.model.model.get_rope_index(
            batch.input_ids, mm_token_type_ids=types, image_grid_thw=grids, attention_mask=in_prompt
        )
        after_prompt = deltas + in_prompt.sum(dim=1, keepdim=True) + batch.response_offsets
        return torch.where(batch.segment_ids > 0, after_prompt, positions)

    @torch.no_grad()
    def _attention_mask(self, batch: MicroBatch, dtype: torch.dtype) -> torch.Tensor | None:
        """[B, 1, T, T] additive tree mask, or None where plain causal attention is the same.

        Rows are padded on the right, so causal attention never lets a real token see padding.
        """
        if batch.max_responses <= 1:
            return None
        segments = batch.segment_ids
        width = segments.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
        keys, queries = segments[:, None, :], segments[:, :, None]
        seen = causal & ((keys == 0) | (keys == queries))
        mask = torch.zeros(seen.shape, dtype=dtype, device=segments.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)

    def _token_logprobs(self, hidden: torch.Tensor, labels: torch.Tensor, temperature: float, banned: torch.Tensor) -> torch.Tensor:
        """[N, H] hidden states that predict [N] labels -> [N] log-probs, with bounded memory for the logits."""
        if len(labels) <= self._chunk_tokens:
            return self._chunk_logprobs(hidden, labels, temperature, banned)
        chunks = zip(hidden.split(self._chunk_tokens), labels.split(self._chunk_tokens), strict=True)
        return torch.cat([checkpoint(self._chunk_logprobs, *chunk, temperature, banned, use_reentrant=False) for chunk in chunks])

    def _chunk_logprobs(self, hidden: torch.Tensor, labels: torch.Tensor, temperature: float, banned: torch.Tensor) -> torch.Tensor:
        logits = self.model.lm_head(hidden).float()
        if temperature != 1.0:
            logits = logits / temperature
        if len(banned):
            logits = logits.index_fill(1, banned, float("-inf"))
        return logits.gather(1, labels[:, None]).squeeze(1) - logits.logsumexp(dim=1)
