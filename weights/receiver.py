"""The receiving end inside vLLM's engine process: staged safetensors files become the model's weights.

Owns the weight-transfer backend "rethinker_shm" and the repair of a model whose update broke off. Imported only by vLLM's
workers, through worker_extension_cls; it must not know Ray, DeepSpeed or prompts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file
from tqdm import tqdm
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from weights import NCCL_BACKEND, SHARED_MEMORY_BACKEND
from weights.manifest import WeightManifest, WeightUpdateError
from weights.verifier import FileVerifier


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Files need no rendezvous."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """A whole update, in one call, so that it is verified whole before the model is touched."""

    paths: list[str]
    manifest: dict[str, Any]  # WeightManifest.to_dict()


class SharedMemoryWeightTransferEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Loads staged updates; the model is untouched until every file has been verified."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.touched = False  # whether the update that is under way has begun to change the model
        self.changed = False  # whether the update that was started last has changed anything, also when it is over for this worker
        self.checksum: str | None = None  # of the model that was loaded last; None: it is not whole, or no update has come
        self._parameters: dict[str, tuple[int, ...]] | None = None  # name and shape of what the last whole update held
        self._verified: tuple[list[str], WeightManifest] | None = None
        self.verifier = FileVerifier()

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        """Begin an update; receive_weights opens the model for loading."""
        self.touched = self.changed = False

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load an update. vLLM's own version waits for an accelerator afterwards, which a CPU has not."""
        self.receive_weights(self.parse_update_info(update_info))

    def verify(self, paths: list[str], manifest: WeightManifest) -> str:
        """Read all files and compare them with their manifest; the model runs on.

        Args:
            paths: of the buckets.
            manifest: that they are to be.

        Returns:
            The whole model's checksum, of the bytes that this process has read.

        Raises:
            WeightUpdateError: when a file is missing or wrong, or the parameters are not those of the update before.
        """
        self._verified = None
        checksum = self.verifier.verify(paths, manifest)
        if self._parameters is not None:
            manifest.check_same_parameters(self._parameters)
        self._verified = (paths, manifest)
        return checksum

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        """Load files that verify has found right, bucket by bucket.

        Args:
            update_info: the files and their manifest.

        Raises:
            WeightUpdateError: before the model is touched when these files were not verified; after it when the first update has no value
                for a parameter of the model.
        """
        manifest = WeightManifest.from_dict(update_info.manifest)
        if self._verified != (update_info.paths, manifest):
            raise WeightUpdateError(f"the files of version {manifest.version} were not verified")
        expected = {name for name, _ in self.model.named_parameters()}  # tied heads are named once, by the embedding
        self.touched = self.changed = True
        self.checksum = self._verified = None
        initialize_layerwise_reload(self.model)
        names: set[str] = set()
        for path in update_info.paths:
            names |= self.model.load_weights(iter(load_file(path).items()))
        missing = sorted(expected - names)
        if missing:
            told = f"{len(missing)} parameters of the model: {', '.join(missing[:5])}"
            raise WeightUpdateError(f"the update to version {manifest.version} has no value for {told}")
        self._parameters = manifest.shapes
        self.checksum = manifest.checksum

    def finish_weight_update(self) -> None:
        """Close the model for loading and make the packed copy of a tied output layer anew."""
        if not self.touched:
            return
        finalize_layerwise_reload(self.model, self.model_config)
        self.rebuild_tied_head()
        self.touched = False

    def rebuild_tied_head(self) -> None:
        """Pack a tied lm_head again.

        Its weight is the embedding's, so no weight is loaded for it and vLLM keeps the copy that it packed for the CPU's
        matrix product at start: log-probs would stay those of the first version's output layer.
        """
        if not getattr(self.model_config.hf_text_config, "tie_word_embeddings", False) or self.device.type != "cpu":
            return
        for layer in self.model.modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """Stop reading."""
        self.verifier.stop()


class WeightUpdateExtension:
    """Methods that vLLM's workers get in addition (worker_extension_cls); importing it registers the backend."""

    weight_transfer_engine: WeightTransferEngine
    vllm_config: Any
    _weight_update_active: bool
    start_weight_update: Callable[[], None]
    update_weights: Callable[[dict[str, Any]], None]
    finish_weight_update: Callable[[], None]

    def expect_weights(self, paths: list[str], version: int, timeout_s: float) -> None:
        """Begin to read a version that is about to be written, in a thread; see FileVerifier.expect."""
        self._files().verifier.expect(paths, version, timeout_s=timeout_s)

    def verify_weights(self, paths: list[str], manifest: dict[str, Any]) -> str:
        """Verify a staged version while the model runs on; see SharedMemoryWeightTransferEngine.verify."""
        return self._files().verify(paths, WeightManifest.from_dict(manifest))

    def apply_weights(self, paths: list[str], manifest: dict[str, Any]) -> str | None:
        """Take a verified version through all of vLLM's steps, in one call: each call more is a way to this process and back in the pause.

        Args:
            paths: of the buckets.
            manifest: what they are, as verify_weights has had it.

        Returns:
            See weights_checksum.
        """
        self.start_weight_update()
        self.update_weights({"paths": paths, "manifest": manifest})
        self.finish_weight_update()
        return self.weights_checksum()

    def weights_checksum(self) -> str | None:
        """This worker's end of the handshake.

        Returns:
            Checksum of the whole model, of what it has loaded; None: an update broke off, or none has come.
        """
        engine: Any = self.weight_transfer_engine  # either of the two backends
        return None if engine.touched else engine.checksum

    def limit_broadcasts(self, timeout_s: float) -> None:
        """Set the deadline of one broadcast; see CheckedNcclWeightTransferEngine."""
        engine: Any = self.weight_transfer_engine
        engine.timeout_s = timeout_s

    def _files(self) -> SharedMemoryWeightTransferEngine:
        engine = self.weight_transfer_engine
        if not isinstance(engine, SharedMemoryWeightTransferEngine):
            raise WeightUpdateError(f"weights come to this engine by {type(engine).__name__}, not in files")
        return engine

    def abort_weight_update(self) -> bool:
        """Close an update that broke off, so that the model can run and be updated again.

        Returns:
            True when the old weights are still whole; False when layers of both versions are mixed and a full update must follow.
        """
        engine = self.weight_transfer_engine
        untouched = isinstance(engine, SharedMemoryWeightTransferEngine) and not engine.changed
        self._weight_update_active = False
        engine.reset_weight_update_target()
        if not untouched:
            with set_current_vllm_config(self.vllm_config):
                _close_broken_reload(engine)
        return untouched


def _close_broken_reload(engine: Any) -> None:
    """Give layers that were not finished their old tensors back.

    vLLM's finalize would process a partly loaded layer and would leave one that failed in processing unpacked; with their
    progress forgotten it takes the way of a layer for which nothing was loaded.
    """
    for layer in engine.model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            info.loaded_weights.clear()
            info.load_numel = 0
    finalize_layerwise_reload(engine.model, engine.model_config)
    if isinstance(engine, SharedMemoryWeightTransferEngine):
        engine.rebuild_tied_head()
    engine.touched = False


# vLLM loads a model behind a progress bar, whose lock is a named semaphore in shared memory that a killed process leaves there.
tqdm.set_lock(threading.RLock())
WeightTransferEngineFactory.register_engine(SHARED_MEMORY_BACKEND, SharedMemoryWeightTransferEngine)
WeightTransferEngineFactory.register_engine(NCCL_BACKEND, "weights.nccl_receiver", "CheckedNcclWeightTransferEngine")
