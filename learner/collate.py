"""Sampled trajectories -> the tensors of one micro-batch.

Owns the layout that the policy model reads: where each token, image and predicted token sits. Must not know the model,
DeepSpeed or the loss beyond the numbers that it carries along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from algorithms.types import ImageRef, SegmentKind, Trajectory
from learner.images import ImageCache, ProcessedImage
from learner.packing import Row

PADDING = -1  # in segment_ids
KINDS: dict[SegmentKind, int] = {"y1": 0, "trigger": 1, "y2": 2}  # in segment_kinds


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenIds:
    """The ids that the layout needs to know."""

    pad: int
    vision_start: int
    vision_end: int
    image: int

    @classmethod
    def of(cls, config: Any) -> TokenIds:
        """Read them from a Qwen2.5-VL configuration."""
        return cls(
            pad=config.text_config.pad_token_id or 0,
            vision_start=config.vision_start_token_id,
            vision_end=config.vision_end_token_id,
            image=config.image_token_id,
        )


def patch_values(vision_config: Any) -> int:
    """Count the numbers in one patch of pixel values."""
    return vision_config.in_channels * vision_config.temporal_patch_size * vision_config.patch_size**2


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerms:
    """What the loss needs of each sample, in the samples' order."""

    coefficients: Sequence[float]  # [S] what takes the advantage's place
    weights: Sequence[float]  # [S] what the sample's summed token loss is multiplied by
    nll_weights: Sequence[float] | None = None  # [S] what its summed NLL is multiplied by; None: zeros


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """B rows of T tokens on the right-padded grid [B, T]; N predicted tokens; I distinct images that occur O times with K tokens.

    Example: the prompt [5, 6] with the responses [7, 8] and [9, 2] is the row ``input_ids=[5, 6, 7, 9]``,
    ``segment_ids=[0, 0, 1, 2]``, ``response_offsets=[0, 0, 0, 0]``; its predicted tokens are ``labels=[7, 8, 9, 2]`` at
    ``logit_positions=[1, 2, 1, 3]``.
    """

    input_ids: torch.Tensor  # [B, T] int64
    segment_ids: torch.Tensor  # [B, T] int64: 0 the prompt, k its k-th response, PADDING
    response_offsets: torch.Tensor  # [B, T] int64: a response token's index in its response, else 0
    max_responses: int  # of one row; 1: a causal mask is exact
    logit_positions: torch.Tensor  # [N] int64, flat in B * T: where each predicted token's logits are
    labels: torch.Tensor  # [N] int64, the predicted tokens
    samples: torch.Tensor  # [N] int64, whose token it is, by the number of the sample
    behavior_logprobs: torch.Tensor  # [N] float32, nats
    versions: torch.Tensor  # [N] int64, the policy version that produced the token
    coefficients: torch.Tensor  # [N] float32, of the sample
    weights: torch.Tensor  # [N] float32, of the sample
    nll_weights: torch.Tensor  # [N] float32, of the sample
    segment_kinds: torch.Tensor  # [N] int64, KINDS of the token's segment
    image_token_positions: torch.Tensor  # [K] int64, flat in B * T, in order
    image_feature_rows: torch.Tensor  # [K] int64: the row of the vision tower's output that belongs there
    image_index: torch.Tensor  # [O] int64: the distinct image of each occurrence, in the order of the rows
    pixel_values: torch.Tensor | None  # [patches, patch values] float32, the distinct images one after another; None: no image
    image_grid_thw: torch.Tensor | None  # [I, 3] int64

    @property
    def num_rows(self) -> int:
        """B."""
        return self.input_ids.shape[0]

    @property
    def num_padded_tokens(self) -> int:
        """B * T, what the micro-batch costs."""
        return self.input_ids.numel()

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device; itself when it's there already."""
        if self.input_ids.device == device:
            return self
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: value.to(device, non_blocking=True) for name, value in tensors.items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved)


class Collator:
    """Makes micro-batches.

    Args:
        images: where pixel values come from.
        token_ids: the model's.
        patch_values: numbers in one patch, for the dummy image.
        merge_size: rows and columns of patches in one image token.
        always_run_vision: append a dummy row with an image to micro-batches without one. Needed with several ranks: a rank that skips the
            vision tower leaves the others waiting in its collectives (ZeRO-3), or its gradients come out wrong (ZeRO-1, 2). Adding
            ``0 * visual(zeros)`` to the loss is no remedy: it changes the order of the gradient hooks between ranks.
    """

    def __init__(self, images: ImageCache, token_ids: TokenIds, *, patch_values: int, merge_size: int, always_run_vision: bool):
        self._images = images
        self._ids = token_ids
        self._merge_size = merge_size
        self._always_run_vision = always_run_vision
        grid = torch.tensor([1, 2 * merge_size, 2 * merge_size])
        self._dummy_image = ProcessedImage(pixel_values=torch.zeros(int(grid.prod()), patch_values), grid_thw=grid)

    def prompt_length(self, trajectory: Trajectory) -> int:
        """Count a prompt's tokens with its image pads expanded.

        Args:
            trajectory: of the prompt.

        Returns:
            Tokens in the learner's row.

        Raises:
            ValueError: when the number of image pads isn't the number of images.
        """
        pads = int(np.count_nonzero(trajectory.prompt_token_ids == self._ids.image))
        if pads != len(trajectory.images):
            found = f"{pads} image pads in its prompt for {len(trajectory.images)} images"
            raise ValueError(f"trajectory {trajectory.trajectory_id} has {found}")
        image_tokens = sum(self._images.num_tokens(image) for image in trajectory.images)
        return len(trajectory.prompt_token_ids) - pads + image_tokens

    def collate(
        self, trajectories: Sequence[Trajectory], rows: Sequence[Row], terms: LossTerms | None = None, *, masked: bool = False
    ) -> MicroBatch:
        """Lay out rows of samples.

        Args:
            trajectories: [S] all samples, of which the rows name some.
            rows: of this micro-batch; none: a micro-batch without a predicted token, which keeps a rank in step with the others.
            terms: what the loss needs; None: zeros, for scoring.
            masked: predict also the tokens that the model didn't sample (loss_mask False).

        Returns:
            The micro-batch, on the CPU.
        """
        layout = _Layout(self._ids, self._images, merge_size=self._merge_size)
        for row in rows:
            layout.add_row(trajectories, row, masked=masked)
        if not rows or (self._always_run_vision and not layout.occurrences):
            layout.add_dummy_row(self._dummy_image)
        return layout.build(terms)


class _Layout:
    """A micro-batch in the making: columns of each row, then one grid."""

    def __init__(self, ids: TokenIds, images: ImageCache, *, merge_size: int):
        self._ids = ids
        self._images = images
        self._merge_size = merge_size
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # ids, segments, offsets
        # row, columns, labels, log-probs, versions, segment kinds, sample
        self._predicted: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]] = []
        self._image_columns: list[tuple[int, np.ndarray]] = []  # row, columns of its image tokens
        self._distinct: dict[str, tuple[int, ProcessedImage]] = {}
        self.occurrences: list[int] = []

    def add_row(self, trajectories: Sequence[Trajectory], row: Row, *, masked: bool) -> None:
        first = trajectories[row.responses[0][0]]
        prompt = self._expand(first.prompt_token_ids, first.images)
        parts, segments, offsets = [prompt], [np.zeros(len(prompt), np.int64)], [np.zeros(len(prompt), np.int64)]
        start = len(prompt)
        for number, samples in enumerate(row.responses, start=1):
            response = trajectories[samples[0]].response_token_ids
            parts.append(response[:-1])
            segments.append(np.full(len(response) - 1, number))
            offsets.append(np.arange(len(response) - 1))
            columns = np.arange(start - 1, start + len(response) - 1)
            columns[0] = len(prompt) - 1  # the prompt's last token predicts the first token of every response
            for sample in samples:
                trajectory = trajectories[sample]
                kept = slice(None) if masked else trajectory.loss_mask
                sampled = trajectory.behavior_logprobs[kept], trajectory.token_versions[kept], segment_kinds(trajectory)[kept]
                self._predicted.append((len(self._rows), columns[kept], response[kept], *sampled, sample))
            start += len(response) - 1
        self._rows.append((np.concatenate(parts), np.concatenate(segments), np.concatenate(offsets)))

    def add_dummy_row(self, image: ProcessedImage) -> None:
        pads = [self._ids.image] * 4
        tokens = np.array([self._ids.vision_start, *pads, self._ids.vision_end], np.int64)
        self._image_columns.append((len(self._rows), np.arange(1, 5)))
        self.occurrences.append(self._number_of("dummy", image))
        self._rows.append((tokens, np.zeros(len(tokens), np.int64), np.zeros(len(tokens), np.int64)))

    def _expand(self, prompt: np.ndarray, refs: Sequence[ImageRef]) -> np.ndarray:
        """One image pad per image -> as many as the image has tokens."""
        if not refs:
            return prompt
        repeats = np.ones(len(prompt), np.int64)
        repeats[prompt == self._ids.image] = [self._images.num_tokens(ref) for ref in refs]
        expanded = np.repeat(prompt, repeats)
        self._image_columns.append((len(self._rows), np.flatnonzero(expanded == self._ids.image)))
        self.occurrences += [self._number_of(ref.sha256, self._images.get(ref)) for ref in refs]
        return expanded

    def _number_of(self, key: str, image: ProcessedImage) -> int:
        return self._distinct.setdefault(key, (len(self._distinct), image))[0]

    def build(self, terms: LossTerms | None) -> MicroBatch:
        width = max(len(ids) for ids, _, _ in self._rows)
        grid = np.empty((3, len(self._rows), width), np.int64)
        grid[0], grid[1], grid[2] = self._ids.pad, PADDING, 0
        for number, columns in enumerate(self._rows):
            for plane, values in zip(grid, columns, strict=True):
                plane[number, : len(values)] = values
        counts = np.array([len(columns) for _, columns, *_ in self._predicted], np.int64)
        samples = np.array([sample for *_, sample in self._predicted], np.int64)
        zeros = np.zeros(len(samples), np.float32)

        def of_samples(values: Sequence[float] | None) -> torch.Tensor:
            if values is None:
                return torch.from_numpy(np.repeat(zeros, counts))
            return torch.from_numpy(np.repeat(np.asarray(values, np.float32)[samples] if len(samples) else zeros, counts))

        return MicroBatch(
            input_ids=torch.from_numpy(grid[0]),
            segment_ids=torch.from_numpy(grid[1]),
            response_offsets=torch.from_numpy(grid[2]),
            max_responses=int(grid[1].max()),
            logit_positions=_joined([row * width + columns for row, columns, *_ in self._predicted], np.int64),
            labels=_joined([labels for _, _, labels, *_ in self._predicted], np.int64),
            samples=torch.from_numpy(np.repeat(samples, counts)),
            behavior_logprobs=_joined([logprobs for *_, logprobs, _, _, _ in self._predicted], np.float32),
            versions=_joined([versions for *_, versions, _, _ in self._predicted], np.int64),
            segment_kinds=_joined([kinds for *_, kinds, _ in self._predicted], np.int64),
            coefficients=of_samples(terms and terms.coefficients),
            weights=of_samples(terms and terms.weights),
            nll_weights=of_samples(terms and terms.nll_weights),
            image_token_positions=_joined([row * width + columns for row, columns in self._image_columns], np.int64),
            **self._image_tensors(),
        )

    def _image_tensors(self) -> dict[str, torch.Tensor | None]:
        index = torch.tensor(self.occurrences, dtype=torch.int64)
        if not self._distinct:
            return {"image_feature_rows": index, "image_index": index, "pixel_values": None, "image_grid_thw": None}
        images = [image for _, image in self._distinct.values()]
        counts = [int(image.grid_thw.prod()) // self._merge_size**2 for image in images]
        starts = np.concatenate([[0], np.cumsum(counts)])
        return {
            "image_feature_rows": _joined([np.arange(starts[i], starts[i + 1]) for i in self.occurrences], np.int64),
            "image_index": index,
            "pixel_values": torch.cat([image.pixel_values for image in images]),
            "image_grid_thw": torch.stack([image.grid_thw for image in images]),
        }


def segment_kinds(trajectory: Trajectory) -> np.ndarray:
    """Say which segment each response token belongs to.

    Args:
        trajectory: whose segments cover its response.

    Returns:
        [R] int64 of KINDS.
    """
    segments = trajectory.segments
    return np.repeat([KINDS[segment.kind] for segment in segments], [segment.end - segment.start for segment in segments])


def _joined(parts: list[np.ndarray], dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype))
