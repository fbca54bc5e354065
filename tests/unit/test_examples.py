"""The example of a task of one's own: one file of at most 60 lines, and no change elsewhere."""

from pathlib import Path

import pytest

from conf.checks import check
from conf.loading import load_config

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_it_is_short_and_its_configuration_is_sound():
    assert len((EXAMPLES / "reasoning_gym_task.py").read_text().splitlines()) <= 60
    check(load_config(str(EXAMPLES / "reasoning_gym.yaml"), ["model.path=unused"]), paths=False)


def test_puzzles_are_generated_and_scored_in_grader_processes():
    pytest.importorskip("reasoning_gym", reason="needs a compiler to be installed: make test-examples")
    import asyncio

    from tasks.dataset import PromptDataset
    from tasks.grading import GraderPool

    config = load_config(str(EXAMPLES / "reasoning_gym.yaml"), ["data.path=basic_arithmetic:20:1+leg_counting:10:1"]).data
    data = PromptDataset(config.path, config)
    assert {prompt.category for prompt in data} == {"basic_arithmetic", "leg_counting"}
    assert [prompt.prompt_id for prompt in PromptDataset(config.path, config)] == [prompt.prompt_id for prompt in data]
    pool = GraderPool(processes=1, timeout_s=10.0, memory_bytes=2 << 30)
    try:
        for prompt in (data[0], data[-1]):
            right, wrong = (
                asyncio.run(pool.grade(f"\\boxed{{{answer}}}", prompt.answer, prompt.answer_type)) for answer in (prompt.answer, "1000001")
            )
            assert right.strict and right.strict_score == 1.0
            assert not wrong.lenient and wrong.lenient_score < 1.0
    finally:
        pool.close()
