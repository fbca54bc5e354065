"""A checksum of tensors where they are, on a GPU too: what both ends of a broadcast compare.

Bytes that a broadcast brings never lie in host memory, where XXH3 could read them. A tensor's fingerprint is the sum of its numbers'
bits, each times an odd key of its position, modulo 2^64. One wrong number is always found, because an odd key times a difference below
2^32 is not 0 modulo 2^64; several cancel with a chance of about 2^-32, the multilinear bound (Lemire and Kaser, arXiv 1202.4961).
Owns that arithmetic. Must not know vLLM, NCCL or Ray.
"""

from __future__ import annotations

import functools

import torch
import xxhash

_WORDS = {4: torch.int32, 2: torch.int16, 1: torch.int8}
_KEYS = 2**20
"""Positions with keys of their own; a further piece of a tensor uses them again, times a key of the piece."""
_GOLDEN, _MIX = -7046029254386353131, -4658895280553007687  # odd constants of SplitMix64, as signed numbers


def tensor_fingerprint(tensor: torch.Tensor) -> int:
    """The fingerprint of one tensor's bits; arithmetic on 64-bit integers that wraps around, the same on every device.

    Args:
        tensor: of any shape, numbers of 1, 2 or 4 bytes, on any device.

    Returns:
        From 0 to 2^64 - 1.
    """
    words = tensor.detach().contiguous().reshape(-1).view(_WORDS[tensor.element_size()])
    keys = _keys(str(words.device))
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for piece, start in enumerate(range(0, words.numel(), _KEYS)):
        part = words[start : start + _KEYS].to(torch.int64)
        total += (part * keys[: len(part)]).sum() * (2 * piece + 1)
    return int(total) % 2**64


class ModelFingerprint:
    """The fingerprint of a whole model, tensor by tensor, in any order."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor.

        Args:
            name: as Hugging Face names it.
            tensor: full.
        """
        self._lines[name] = f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor_fingerprint(tensor):016x}"

    def checksum(self) -> str:
        """Of everything that was added.

        Returns:
            Sixteen hexadecimal digits.
        """
        return xxhash.xxh3_64_hexdigest("\n".join(self._lines[name] for name in sorted(self._lines)).encode())


@functools.cache
def _keys(device: str) -> torch.Tensor:
    """[2^20] odd int64, mixed from their positions."""
    mixed = torch.arange(1, _KEYS + 1, dtype=torch.int64, device=device) * _GOLDEN
    mixed = (mixed ^ (mixed >> 31)) * _MIX
    return (mixed ^ (mixed >> 29)) | 1
