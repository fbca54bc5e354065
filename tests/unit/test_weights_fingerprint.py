"""The checksum of tensors on their device: any wrong number, swap or shape is found, and order and pieces make no difference."""

from __future__ import annotations

import pytest
import torch

from weights import fingerprint
from weights.fingerprint import ModelFingerprint, tensor_fingerprint


def by_hand(words: list[int]) -> int:
    """Python's integers, which do not wrap around: sum of key times word, modulo 2^64."""
    golden, mix = (-7046029254386353131) % 2**64, (-4658895280553007687) % 2**64

    def shifted(value: int, bits: int) -> int:  # arithmetic, as on signed numbers
        return ((value - 2**64 if value >= 2**63 else value) >> bits) % 2**64

    total = 0
    for position, word in enumerate(words):
        key = (position + 1) * golden % 2**64
        key = (key ^ shifted(key, 31)) * mix % 2**64
        total += ((key ^ shifted(key, 29)) | 1) * word
    return total % 2**64


def test_the_sum_is_the_one_that_is_described() -> None:
    numbers = torch.tensor([1.0, -2.5, 0.0, 3e-9], dtype=torch.float32)
    assert tensor_fingerprint(numbers) == by_hand(numbers.view(torch.int32).tolist())
    half = torch.tensor([1.0, -2.5, 7.0], dtype=torch.bfloat16)
    assert tensor_fingerprint(half) == by_hand(half.view(torch.int16).tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_single_bit_and_every_swap_is_seen(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    numbers = torch.randn(400).to(dtype)
    bits = numbers.view(torch.int32 if dtype is torch.float32 else torch.int16)
    right = tensor_fingerprint(numbers)
    width = 8 * numbers.element_size()
    for position in range(0, 400, 7):
        for bit in range(width):
            wrong = bits.clone()
            wrong[position] ^= torch.tensor(1 << bit if bit < width - 1 else -(1 << bit), dtype=wrong.dtype)
            assert tensor_fingerprint(wrong.view(dtype)) != right
    for position in range(399):
        wrong = bits.clone()
        wrong[[position, position + 1]] = wrong[[position + 1, position]]
        assert (tensor_fingerprint(wrong.view(dtype)) != right) == bool(bits[position] != bits[position + 1])


def test_two_flipped_signs_do_not_cancel() -> None:
    numbers = torch.ones(300)
    right = tensor_fingerprint(numbers)
    for other in range(1, 300):
        wrong = numbers.clone()
        wrong[[0, other]] = -1.0
        assert tensor_fingerprint(wrong) != right


def test_a_tensor_of_several_pieces_counts_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_KEYS", 64)
    fingerprint._keys.cache_clear()
    try:
        numbers = torch.arange(200, dtype=torch.float32)
        moved = torch.roll(numbers, 64)
        assert tensor_fingerprint(numbers) != tensor_fingerprint(moved)
        assert tensor_fingerprint(numbers) == tensor_fingerprint(numbers.clone())
    finally:
        fingerprint._keys.cache_clear()


def test_of_a_model_order_is_nothing_and_names_shapes_and_formats_are_something() -> None:
    def checksum(*tensors: tuple[str, torch.Tensor]) -> str:
        made = ModelFingerprint()
        for name, tensor in tensors:
            made.add(name, tensor)
        return made.checksum()

    a, b = torch.arange(6.0), torch.ones(3)
    right = checksum(("a", a), ("b", b))
    assert len(right) == 16
    assert checksum(("b", b), ("a", a.clone())) == right
    others = [(("a", a),), (("a", a), ("c", b)), (("a", a.reshape(2, 3)), ("b", b)), (("a", b), ("b", a))]
    assert right not in {checksum(*other) for other in others}
    assert checksum(("a", torch.zeros(2))) != checksum(("a", torch.zeros(2, dtype=torch.bfloat16)))
