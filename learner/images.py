"""Images as the vision tower takes them, kept by content hash.

Owns pixel values, their grid and their number of tokens. Must not know trajectories beyond their image references.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

from algorithms.types import ImageRef
from tasks.images import load_image_ref


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessedImage:
    """One image, resized, normalised and cut into patches."""

    pixel_values: torch.Tensor  # [patches, channels * temporal patch * patch * patch] float32
    grid_thw: torch.Tensor  # [3] int64: frames, rows and columns of patches


class ImageCache:
    """Processed images by sha256, the least recently used ones dropped past a number of bytes.

    Args:
        processor: the model's image processor, loaded as the rollout engine loads it (AutoImageProcessor): the PIL variant differs in a
            few pixels, which moves log-probs by 1e-3.
        capacity_bytes: of pixel values kept.
    """

    def __init__(self, processor: Any, *, capacity_bytes: int):
        self._processor = processor
        self._capacity_bytes = capacity_bytes
        self._bytes = 0
        self._images: OrderedDict[str, ProcessedImage] = OrderedDict()
        self._num_tokens: dict[str, int] = {}  # a few bytes an image, so never dropped

    def num_tokens(self, ref: ImageRef) -> int:
        """Count the tokens that the image takes in a prompt, without making its pixel values.

        Args:
            ref: the image.

        Returns:
            Patches over the square of the merge size.

        Raises:
            BadPromptError: when the file can't be read or isn't the one that was rolled out.
        """
        if ref.sha256 not in self._num_tokens:
            patches = self._processor.get_number_of_image_patches(*load_image_ref(ref).size)
            self._num_tokens[ref.sha256] = patches // self._processor.merge_size**2
        return self._num_tokens[ref.sha256]

    def get(self, ref: ImageRef) -> ProcessedImage:
        """Process the image, or hand out what was kept of it.

        Args:
            ref: the image; its file is read and checked against the hash when it isn't in the cache.

        Returns:
            The image as the vision tower takes it.

        Raises:
            BadPromptError: when the file can't be read or isn't the one that was rolled out.
        """
        if ref.sha256 in self._images:
            self._images.move_to_end(ref.sha256)
            return self._images[ref.sha256]
        features = self._processor(images=[load_image_ref(ref).image], return_tensors="pt")
        image = ProcessedImage(pixel_values=features["pixel_values"], grid_thw=features["image_grid_thw"][0])
        self._images[ref.sha256] = image
        self._bytes += image.pixel_values.nbytes
        while self._bytes > self._capacity_bytes and len(self._images) > 1:
            _, dropped = self._images.popitem(last=False)
            self._bytes -= dropped.pixel_values.nbytes
        return image
