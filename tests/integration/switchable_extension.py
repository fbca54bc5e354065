"""The worker extension with a switch that takes the remedy for tied output layers away, to show what it is there for."""

from __future__ import annotations

from tqdm import tqdm

from weights.receiver import SharedMemoryWeightTransferEngine, WeightUpdateExtension

_REMEDY = SharedMemoryWeightTransferEngine.rebuild_tied_head


class SwitchableExtension(WeightUpdateExtension):
    """Adds switch_head_remedy to vLLM's workers."""

    def switch_head_remedy(self, on: bool) -> None:
        SharedMemoryWeightTransferEngine.rebuild_tied_head = _REMEDY if on else (lambda self: None)

    def answer_wrongly(self) -> None:
        """Have the next load remember another checksum than that of its files, as one that went wrong would."""
        engine = self.weight_transfer_engine
        load = type(engine).receive_weights

        def and_lie(update_info: object) -> None:
            load(engine, update_info)
            engine.checksum = "0123456789abcdef"
            del engine.receive_weights

        engine.receive_weights = and_lie

    def forget_parameters(self) -> None:
        """As in an engine that has had no update yet: any set of parameters is let through to loading."""
        self.weight_transfer_engine._parameters = None

    def progress_bar_lock(self) -> str:
        """What kind of lock the progress bars of this process share."""
        return type(tqdm.get_lock()).__name__
