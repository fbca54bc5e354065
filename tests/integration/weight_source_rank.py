"""One rank of a DeepSpeed group that trains a step and then packs its weights; started by test_weight_source as a process.

Writes what it sent (rank 0) and what torch's own checkpoint gathering says the weights are.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta

import numpy as np
import torch
from torch import nn


class Tied(nn.Module):
    """A language model in miniature, with Hugging Face's name for the output layer."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"embed_tokens": nn.Embedding(50, 12), "mlp": nn.Linear(12, 12), "norm": nn.LayerNorm(12)})
        self.lm_head = nn.Linear(12, 50, bias=False)
        if tied:
            self.lm_head.weight = self.model["embed_tokens"].weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.model["norm"](self.model["mlp"](self.model["embed_tokens"](ids))))


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids)


def main(rank: int, world_size: int, port: int, cases: list[dict], folder: str) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0", LOCAL_SIZE=str(world_size), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), DS_ACCELERATOR="cpu",
    )  # fmt: skip
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, timeout=timedelta(seconds=120))
    for case in cases:
        os.makedirs(f"{folder}/{case['name']}", exist_ok=True)
        run_case(rank, folder=f"{folder}/{case['name']}", stage=case["stage"], tied=case["tied"], dtype=case["dtype"])
    torch.distributed.destroy_process_group()


def run_case(rank: int, *, folder: str, stage: int, tied: bool, dtype: str) -> None:
    import deepspeed

    from weights.buckets import verify_bucket
    from weights.publisher import WeightPublisher
    from weights.source import DeepSpeedWeightSource

    torch.manual_seed(0)
    wrapper = Wrapper(Tied(tied))
    wrapper.model.model["norm"].requires_grad_(False)
    engine, *_ = deepspeed.initialize(
        model=wrapper,
        optimizer=torch.optim.AdamW([p for p in wrapper.parameters() if p.requires_grad], lr=1e-2),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "bf16": {"enabled": dtype == "bfloat16"},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        },
    )
    ids = torch.arange(8).reshape(1, 8) + rank
    engine.backward(engine(ids).float().log_softmax(-1)[..., 0].mean())
    engine.step()

    source = DeepSpeedWeightSource(engine.module.model, zero_stage=stage, rank=rank, tied=tied, gather_bytes=1000)
    metadata = source.metadata()
    if stage == 3:
        assert all(parameter.numel() == 0 for parameter in engine.module.parameters()), "stage 3 must have partitioned every parameter"
    publisher = WeightPublisher(source, bucket_bytes=1500, sends=rank == 0, root=folder)
    first = list(publisher.publish(4, compare=True))
    if stage == 3:
        assert all(parameter.numel() == 0 for parameter in engine.module.parameters()), "gathered parameters must be given back"
        with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
            expected = {name: p.detach().clone() for name, p in engine.module.model.named_parameters()}
    else:
        expected = {name: p.detach().clone() for name, p in engine.module.model.named_parameters()}
    second = list(publisher.publish(5, compare=True))
    if rank == 0:
        publication, again = first[-1], second[-1]
        manifest = publication.manifest
        assert {m.name: m.shape for m in metadata} == manifest.shapes
        assert all(str(m.dtype) == f"torch.{dtype}" for m in metadata)
        assert {m.name for m in metadata if m.frozen} == {name for b in manifest.buckets if b.frozen for name in b.names} == {
            "model.norm.weight", "model.norm.bias"
        }  # fmt: skip
        assert set(again.parts) == {"same"} and again.base == manifest.checksum
        for index, (bucket, path) in enumerate(zip(manifest.buckets, publication.paths, strict=True)):
            payload = np.fromfile(path, dtype=np.uint8)
            verify_bucket(bucket, payload, where=path)
            payload.tofile(f"{folder}/{index}.safetensors")
        torch.save(expected, f"{folder}/expected.pt")
    else:
        assert first == second == []
    publisher.close()
    # A step after the gather: the parameters must be whole and trainable still.
    engine.backward(engine(ids).float().log_softmax(-1)[..., 0].mean())
    engine.step()
    engine.destroy()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
