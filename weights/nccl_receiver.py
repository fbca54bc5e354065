"""The receiving end of a broadcast inside vLLM's workers: vLLM's own, with a checksum of what has arrived and a way out of the collective.

Owns the weight-transfer backend "rethinker_nccl". Imported only by vLLM's workers on GPUs; must not know Ray or DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferEngine,
    NCCLWeightTransferInitInfo,
    NCCLWeightTransferUpdateInfo,
)

from weights.fingerprint import ModelFingerprint
from weights.manifest import WeightUpdateError
from weights.way_out import WayOut, broadcast_abandoned


class CheckedNcclWeightTransferEngine(NCCLWeightTransferEngine):
    """vLLM's engine; a broadcast that its sender gives up, or that takes too long, ends with an error instead of never."""

    model: Any
    model_update_group: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.touched = False  # whether the update that is under way has begun to change the model
        self.checksum: str | None = None  # of what was loaded last; None: it is not whole, or no update has come
        self.timeout_s = 120.0  # for one broadcast, set by the extension

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        """Meet the sender; a group of before is left first."""
        self.shutdown()
        super().init_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        """Open the model for loading."""
        self.touched, self.checksum = True, None
        super().start_weight_update()

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Load the broadcast's tensors and sum them up as they arrive.

        Args:
            update_info: their names and shapes.

        Raises:
            WeightUpdateError: when the sender gave up, or the time is over.
        """
        group, model = self.model_update_group, self.model
        if group is None:
            raise WeightUpdateError("this engine is in no broadcast group")
        fingerprint = ModelFingerprint()
        self.model = _Listener(model, fingerprint)  # all that is asked of it is load_weights
        way_out = WayOut(lambda: broadcast_abandoned(group), group.destroy, timeout_s=self.timeout_s)
        try:
            with way_out:
                super().receive_weights(update_info)
                torch.accelerator.synchronize()  # what is enqueued can still hang
        except RuntimeError:  # NCCL's, of a group that was aborted
            if way_out.reason is None:
                raise
        finally:
            self.model = model
        if way_out.reason is not None:
            self.model_update_group = None
            raise WeightUpdateError(f"the broadcast was left: {way_out.reason}")
        self.checksum = fingerprint.checksum()

    def finish_weight_update(self) -> None:
        """Close the model for loading."""
        super().finish_weight_update()
        self.touched = False


class _Listener:
    """A model's load_weights, overheard."""

    def __init__(self, model: torch.nn.Module, fingerprint: ModelFingerprint) -> None:
        self._model, self._fingerprint = model, fingerprint

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        """As the model's."""
        return self._model.load_weights(self._overheard(weights))

    def _overheard(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self._fingerprint.add(name, tensor)
            yield name, tensor
