"""One atomic checkpoint of the whole run: learner, replay, ledger, step and version together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.controller import Controller
from cluster.run_folder import RunFolder, write_json
from cluster.waiting import answer_within


async def save_checkpoint(folder: RunFolder, controller: Controller, evaluations: dict[str, Any], *, keep_last: int) -> Path:
    """Write the run's state between two steps.

    Args:
        folder: of the run.
        controller: whose roles are written.
        evaluations: results so far.
        keep_last: checkpoints to keep.

    Returns:
        The checkpoint's folder.
    """
    writing = folder.begin_checkpoint(controller.step)
    # The ledger before replay: a group that arrives in between is owed and stored, and replay takes it once only.
    state = {
        "step": controller.step,
        "generated_tokens": controller.generated_tokens,
        "ledger": controller.ledger.state(),
        "evaluations": evaluations,
    }
    timeout_s = controller.config.learner.timeout_s
    await answer_within(controller.replay.snapshot.remote(str(writing / "replay")), timeout_s, "the replay actor to write its snapshot")
    await controller.learner.save_checkpoint(str(writing / "learner"))
    write_json(writing / "controller.json", state)
    return folder.commit_checkpoint(writing, keep_last=keep_last)


async def load_checkpoint(checkpoint: Path, controller: Controller) -> dict[str, Any]:
    """Bring a checkpoint into freshly started roles, engines included.

    Args:
        checkpoint: its folder.
        controller: of the started roles.

    Returns:
        The evaluations so far.
    """
    state = json.loads((checkpoint / "controller.json").read_text())
    timeout_s = controller.config.learner.timeout_s
    await answer_within(controller.replay.restore.remote(str(checkpoint / "replay")), timeout_s, "the replay actor to read its snapshot")
    await controller.learner.load_checkpoint(str(checkpoint / "learner"))
    controller.step = state["step"]
    controller.generated_tokens = state["generated_tokens"]
    controller.ledger.restore(state["ledger"])
    await controller.transport.deliver(controller.version)
    return state["evaluations"]
