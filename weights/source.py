"""The learner's weights as named full tensors, whatever ZeRO has made of them.

Owns names, order and gathering. Has the shape of vLLM's WeightSource without importing vLLM, which would cost the learner hundreds of
megabytes. Must not know how the tensors travel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

GATHER_BYTES = 256 * 2**20
"""Full parameters that are gathered at once under ZeRO-3, on every rank; a larger parameter is gathered alone."""


@dataclass(frozen=True, slots=True)
class ParameterMetadata:
    """One tensor to come; the first fields are those of vLLM's ParamMeta."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]  # of the full tensor
    frozen: bool = False  # not trained: it is the same in every version

    @property
    def nbytes(self) -> int:
        """Of the full tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


class DeepSpeedWeightSource:
    """A re-iterable stream of (name, full tensor) over a Hugging Face module that DeepSpeed may have partitioned.

    Every rank must iterate it to the end at the same time, because gathering is a collective; only rank 0 gets tensors, the others get
    an empty stream. Rank 0 may use a tensor until it asks for the next group's; it must not change it.

    Args:
        module: the Hugging Face model itself, not DeepSpeed's engine, so that the names are the checkpoint's.
        zero_stage: 0 to 3; only stage 3 partitions parameters.
        rank: of this process; 0 is the sender.
        tied: the output layer is the input embedding; lm_head.weight is then left out, as in a checkpoint.
        prefix_to_strip: taken off every name.
        gather_bytes: bound on what is gathered at once under ZeRO-3.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        zero_stage: int,
        rank: int,
        tied: bool,
        prefix_to_strip: str = "",
        gather_bytes: int = GATHER_BYTES,
    ) -> None:
        self._sends = rank == 0
        self._partitioned = zero_stage == 3
        self._gather_bytes = gather_bytes
        self._parameters = [
            (name.removeprefix(prefix_to_strip), parameter)
            for name, parameter in module.named_parameters(remove_duplicate=True)
            if not (tied and name.endswith("lm_head.weight"))
        ]

    def metadata(self) -> list[ParameterMetadata]:
        """What iteration yields on rank 0, in its order, without gathering anything; the same on every rank."""
        return [
            ParameterMetadata(name, parameter.dtype, self._shape(parameter), frozen=not parameter.requires_grad)
            for name, parameter in self._parameters
        ]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._stream(self._parameters)

    def trained(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The stream without frozen parameters, which are neither gathered nor yielded; the same rules hold.

        Returns:
            Name and full tensor of each on rank 0.
        """
        return self._stream([(name, parameter) for name, parameter in self._parameters if parameter.requires_grad])

    def _stream(self, parameters: list[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, torch.Tensor]]:
        if not self._partitioned:
            if self._sends:
                yield from ((name, parameter.detach()) for name, parameter in parameters)
            return
        for group in self._groups(parameters):
            yield from self._gathered(group)

    def _gathered(self, group: list[tuple[str, nn.Parameter]]) -> list[tuple[str, torch.Tensor]]:
        """Gather a group on all ranks; copies on rank 0, because the parameters are partitioned again on leaving."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter for _, parameter in group]):
            return [(name, parameter.detach().clone()) for name, parameter in group] if self._sends else []

    def _groups(self, parameters: list[tuple[str, nn.Parameter]]) -> Iterator[list[tuple[str, nn.Parameter]]]:
        """Parameters in order, in groups of at most gather_bytes; the same on every rank."""
        group: list[tuple[str, nn.Parameter]] = []
        group_bytes = 0
        for name, parameter in parameters:
            nbytes = int(getattr(parameter, "ds_numel", parameter.numel())) * parameter.element_size()
            if group and group_bytes + nbytes > self._gather_bytes:
                yield group
                group, group_bytes = [], 0
            group.append((name, parameter))
            group_bytes += nbytes
        if group:
            yield group

    def _shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """The full shape; outside of a gather a partitioned parameter is empty."""
        return tuple(getattr(parameter, "ds_shape", parameter.shape))
