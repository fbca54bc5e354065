"""One rank of a learner group over the real DeepSpeed; started by test_learner as a process, without Ray.

Takes every case's steps in one process group and leaves what test_learner judges: weights, metrics, scores.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch

from learner.deepspeed_engine import RankAddress
from learner.worker import LearnerWorker
from tests.tiny_learner import make_config, sample_table


def main(rank: int, world_size: int, port: int, folder: str, model: str, cases: list[dict[str, Any]], disarmed: bool) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    address = RankAddress(rank=rank, world_size=world_size, master_address="127.0.0.1", master_port=port)
    batches = pickle.loads(Path(folder, "batches.pickle").read_bytes())
    for case in cases:
        run_case(Path(folder, case["name"]), model, address, case, batches, disarmed=disarmed)


def run_case(folder: Path, model: str, address: RankAddress, case: dict, batches: list, *, disarmed: bool) -> None:
    """Steps, a checkpoint, the same steps again from it in this and in a new engine, a step that must be skipped, an export."""
    folder.mkdir(exist_ok=True)
    shards = [sample_table(batch[address.rank % len(batch)]) for batch in batches]
    config = make_config(dtype=case["dtype"], learner={"zero_stage": case["stage"], **case["learner"]})
    worker = LearnerWorker(config, model, address)
    if disarmed:
        worker._update._collator._always_run_vision = False
    metrics = [worker.update(shards[0], step=0)]
    if disarmed:
        keep(worker, folder / "first.pt")
        return
    worker.begin_checkpoint(folder / "checkpoint")
    assert worker.finish_checkpoint() is None
    keep(worker, folder / "first.pt")
    if case["stage"] == 3:
        keep_gradient(worker, folder / "gradient.pt", rank=address.rank)
    metrics.append(worker.update(shards[1], step=1))
    keep(worker, folder / "second.pt")
    trajectories = [sample.trajectory for batch in batches[:2] for part in batch for sample in part]
    scores = worker.score(trajectories[: 2 + address.rank])  # unequal counts
    worker.load_checkpoint(folder / "checkpoint")
    worker.update(shards[1], step=1)
    keep(worker, folder / "again.pt")
    worker.export_model(folder / "export")
    worker.close()

    worker = LearnerWorker(config, model, address)
    worker.load_checkpoint(folder / "checkpoint")
    worker.update(shards[1], step=1)
    keep(worker, folder / "fresh.pt")
    skipped = worker.update(shards[2], step=2)
    keep(worker, folder / "skipped.pt")
    after = worker.update(shards[1], step=3)
    loss = worker.supervised_update(shards[0], step=4)
    worker.close()
    if address.rank == 0:
        results = {"metrics": metrics, "skipped": skipped, "after": after, "scores": scores, "supervised": loss}
        (folder / "results.pickle").write_bytes(pickle.dumps(results))


def keep(worker: LearnerWorker, path: Path) -> None:
    """Write the weights as rank 0 sends them."""
    weights = {name: tensor.clone() for name, tensor in worker.weight_source()}
    if weights:
        torch.save(weights, path)


def keep_gradient(worker: LearnerWorker, path: Path, *, rank: int) -> None:
    """Write the first step's clipped gradient: Adam's first moment is (1 - beta1) times it then."""
    from deepspeed.utils import safe_get_full_optimizer_state

    moments = {name: safe_get_full_optimizer_state(p, "exp_avg") for name, p in worker._policy.model.named_parameters()}
    if rank == 0:
        torch.save({name: moment.float() for name, moment in moments.items()}, path)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
