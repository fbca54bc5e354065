"""What `rethinker train` does around its steps: what it imports, and what belongs to a step whatever comes after it."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.restarts import RestartBudgetExceeded
from cluster.train import DRAW_EVERY_S, _Run
from conf.schema import CheckpointConfig, Config, EvaluationConfig


def test_a_step_that_nobody_is_left_to_evaluate_has_its_row_all_the_same() -> None:
    """It is in the checkpoint that is taken then: a run that goes on from there doesn't make it again."""
    rows: list[tuple[int, dict[str, float]]] = []

    async def nobody_answers(name: str) -> None:
        raise RestartBudgetExceeded(f"rollout actor 0 died: nothing {name}")

    sinks = SimpleNamespace(write=lambda step, metrics: rows.append((step, metrics)))
    run: Any = SimpleNamespace(config=Config(evaluation=EvaluationConfig(every_steps=2)), _evaluate_once=nobody_answers, _sinks=sinks)
    with pytest.raises(RestartBudgetExceeded, match="nothing after step 4"):
        asyncio.run(_Run._after_step(run, 4, {"reward/mean": 0.5}))
    assert rows == [(4, {"reward/mean": 0.5})]


def test_curves_are_drawn_with_a_run_s_first_and_last_checkpoint_and_else_now_and_then() -> None:
    """A picture takes a processor for two seconds, which small runs with many checkpoints need themselves."""
    drawn: list[int] = []
    config = Config(checkpoint=CheckpointConfig(every_steps=1))
    run: Any = SimpleNamespace(config=config, evaluations={}, guard=SimpleNamespace(suspicious=False), _drawn=-math.inf)
    run.checkpoints = SimpleNamespace(paused=None)

    async def story() -> None:
        async def taken(*_: Any, **__: Any) -> None:
            """Written by nobody."""

        async def draw() -> None:
            run._drawn = time.monotonic()
            drawn.append(step)

        run.checkpoints.take = run.checkpoints.take_last = taken
        run._draw = draw
        for step in range(1, 6):
            if step == 4:
                run._drawn -= DRAW_EVERY_S
            await _Run._checkpoint(run, step, last=step == 5)

    asyncio.run(story())
    assert drawn == [1, 4, 5]


USES = {
    "train": "from cluster.metrics import TensorBoard; sink = TensorBoard(Path(sys.argv[1])); sink.write(1, {'a': 1.0}); sink.close()",
    "evaluate": "",
}


@pytest.mark.parametrize("module", USES)
def test_a_command_does_without_what_only_roles_need(module: str, tmp_path: Path) -> None:
    """They take seconds of a processor to import."""
    program = f"""
import sys, cluster.{module}
from pathlib import Path
{USES[module]}
print(sorted({{'deepspeed', 'torch', 'transformers', 'vllm'}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
