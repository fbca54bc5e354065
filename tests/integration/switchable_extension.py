"""The worker extension with a switch that takes the remedy for tied output layers away, to show what it is there for."""

from __future__ import annotations

from weights.receiver import SharedMemoryWeightTransferEngine, WeightUpdateExtension

_REMEDY = SharedMemoryWeightTransferEngine.rebuild_tied_head


class SwitchableExtension(WeightUpdateExtension):
    """Adds switch_head_remedy to vLLM's workers."""

    def switch_head_remedy(self, on: bool) -> None:
        SharedMemoryWeightTransferEngine.rebuild_tied_head = _REMEDY if on else (lambda self: None)

    def forget_parameters(self) -> None:
        """As in an engine that has had no update yet: any set of parameters is let through to loading."""
        self.weight_transfer_engine._parameters = None
