"""The only door to DeepSpeed: one rank of a ZeRO group that trains a module.

Owns process-group life, precision, gradient reduction, clipping, the optimizer step and its checkpoint, and every difference between
CPU and GPU. Must not know trajectories, losses or what the module computes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from conf.schema import Device, Dtype, LearnerConfig
from learner.checkpoint_files import BackgroundFiles

TORCH_DTYPES = {Dtype.float32: torch.float32, Dtype.bfloat16: torch.bfloat16}

_CHECKPOINT_TAG = "learner"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankAddress:
    """One rank's place in its group and where the group meets."""

    rank: int
    world_size: int
    master_address: str
    master_port: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What became of an optimizer step."""

    applied: bool  # False: the gradients were not finite on some rank, and no rank changed its weights
    grad_norm: float  # over all ranks, before clipping; not finite when the step was skipped


class TrainingEngine:
    """A module under DeepSpeed ZeRO 0-3 with torch's AdamW.

    The process group is made by a process's first engine and is global to it: later engines must have the same address.

    Args:
        module: to train; its frozen parameters stay as they are.
        settings: stage, optimizer, clipping, deadlines.
        dtype: of the weights.
        device: CPU (gloo) or GPU (NCCL).
        address: of this rank.

    Raises:
        RuntimeError: when the other ranks don't arrive within settings.timeout_s.
    """

    def __init__(self, module: nn.Module, settings: LearnerConfig, *, dtype: Dtype, device: Device, address: RankAddress):
        deepspeed = _import_deepspeed(address, device)
        self._settings = settings
        self.address = address
        self.device = torch.device("cpu") if device == Device.cpu else torch.device("cuda", 0)
        deepspeed.init_distributed(
            dist_backend="gloo" if device == Device.cpu else "nccl",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timedelta(seconds=settings.timeout_s),
        )
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module.to(self.device), optimizer=optimizer, config=_deepspeed_config(settings, dtype)
        )
        self._files = BackgroundFiles()
        self._engine.checkpoint_engine = _background_engine(self._files)
        # DeepSpeed would put scripts into a folder that is not made yet; learner/export.py does what they do.
        self._engine._copy_recovery_script = lambda save_path: None
        self._plain = settings.zero_stage == 0 and dtype == Dtype.float32  # DeepSpeed runs torch's optimizer as it is

    @property
    def module(self) -> nn.Module:
        """The trained module; under ZeRO-3 its parameters are whole only inside a forward pass or a gather."""
        return self._engine.module

    def forward(self, *inputs: Any, **options: Any) -> torch.Tensor:
        """Run the module; every rank must call it equally often."""
        return self._engine(*inputs, **options)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients.

        Args:
            loss: [] this rank's share of the batch's loss, already divided by the global normaliser: shares add up over
                micro-batches and ranks. A share that isn't finite spoils the gradients of every rank, so that all skip the step together.
            last: True for the last micro-batch before ``step``; ranks must agree.
        """
        # DeepSpeed averages over ranks; the shares must be summed.
        loss = loss * self.address.world_size
        loss = loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> StepResult:
        """Clip and apply the gathered gradients, then clear them.

        Args:
            learning_rate: of this step.

        Returns:
            Whether it was applied, the same on every rank.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if self._plain:
            return self._plain_step()
        self._engine.step()
        applied = not self._optimizer.overflow
        return StepResult(applied=applied, grad_norm=float(self._engine.get_global_grad_norm()))

    def _plain_step(self) -> StepResult:
        """ZeRO-0 in float32 neither reports the norm nor looks whether it is finite."""
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        grad_norm = float(torch.nn.utils.get_total_norm(gradients))
        applied = math.isfinite(grad_norm)
        if applied:
            self._engine.step()
        else:
            self._engine.zero_grad()
        return StepResult(applied=applied, grad_norm=grad_norm)

    def sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        """Add numbers of all ranks; every rank must call it with equally many."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max_over_ranks(self, value: int) -> int:
        """Find the largest of all ranks' numbers."""
        return int(self._reduced([value], dist.ReduceOp.MAX)[0])

    def _reduced(self, values: Sequence[float], operation: dist.ReduceOp) -> list[float]:
        if self.address.world_size == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=operation)
        return tensor.tolist()

    def begin_save(self, folder: Path) -> None:
        """Copy weights and optimizer state, and start to write them; every rank writes its part into the shared folder.

        Args:
            folder: made when it isn't there.

        Raises:
            RuntimeError: when the last one isn't finished.
        """
        folder.mkdir(parents=True, exist_ok=True)  # under ZeRO DeepSpeed puts its scripts there before any of our files
        self._engine.save_checkpoint(str(folder), tag=_CHECKPOINT_TAG, save_latest=False)
        self._files.begin()

    def finish_save(self) -> str | None:
        """Wait until this rank's part is on the disk; no collective, may be called from another thread.

        Returns:
            None; or why it isn't there.
        """
        return self._files.finish()

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint of the same model, stage and number of ranks; the next steps are bit-identical.

        Args:
            folder: as given to ``begin_save``.

        Raises:
            FileNotFoundError: when there's no checkpoint.
            RuntimeError: when DeepSpeed can't read it.
        """
        if not (folder / _CHECKPOINT_TAG).is_dir():
            raise FileNotFoundError(f"no learner checkpoint in {folder}")
        path, _ = self._engine.load_checkpoint(str(folder), tag=_CHECKPOINT_TAG)
        if path is None:
            raise RuntimeError(f"DeepSpeed could not read the learner checkpoint in {folder}")

    def close(self) -> None:
        """Give the memory back; the engine is of no use afterwards. The process group stays for a next engine and ends with the process."""
        self._engine.destroy()


def checkpoint_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read the whole weights of a checkpoint, in any process and without the ranks that wrote it.

    Args:
        folder: as given to ``TrainingEngine.begin_save``.

    Returns:
        Tensors on the CPU by the module's names; under ZeRO-3 in float32, whatever was trained in.

    Raises:
        FileNotFoundError: when there's no checkpoint.
    """
    whole = folder / _CHECKPOINT_TAG / "mp_rank_00_model_states.pt"
    if whole.is_file():  # only ZeRO-3 cuts parameters up
        return torch.load(whole, map_location="cpu", weights_only=False, mmap=True)["module"]
    if not (folder / _CHECKPOINT_TAG).is_dir():
        raise FileNotFoundError(f"no learner checkpoint in {folder}")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=_CHECKPOINT_TAG)


def _import_deepspeed(address: RankAddress, device: Device) -> Any:
    """Import DeepSpeed with the environment that it reads while it is imported."""
    os.environ.update(
        RANK=str(address.rank),
        WORLD_SIZE=str(address.world_size),
        # Every rank is a process that sees its own device only, so it's the first on its node.
        LOCAL_RANK="0",
        LOCAL_SIZE=str(address.world_size),
        MASTER_ADDR=address.master_address,
        MASTER_PORT=str(address.master_port),
        DS_ACCELERATOR="cpu" if device == Device.cpu else "cuda",
    )
    import deepspeed
    import deepspeed.ops

    # The shared-memory operator is compiled at first use (20 s, and it needs a compiler); gloo does without it. The table is private to
    # DeepSpeed, so a test watches that it still exists.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _background_engine(files: BackgroundFiles) -> Any:
    """What DeepSpeed gives its files to."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    class BackgroundEngine(TorchCheckpointEngine):
        def save(self, state_dict: Any, path: str) -> None:
            files.add(state_dict, path)

        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            files.add_folder(path)

    return BackgroundEngine()


def _deepspeed_config(settings: LearnerConfig, dtype: Dtype) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # of no effect: micro-batches are ours, and the boundary is set by hand
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": dtype == Dtype.bfloat16},
        "zero_optimization": {"stage": settings.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
