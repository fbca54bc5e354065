"""One peer's side of benchmarks/end_to_end.py: TRL's GRPOTrainer with Hugging Face generate on the same prompts and model.

Runs in a virtual environment of its own (TRL is no dependency of the project) and prints one JSON line with the seconds of each step.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def exact_match(completions: list, answer: list[str], **_: object) -> list[float]:
    """Reward 1 for the gold answer in a box; cheaper than a grader, so the peer pays nothing for grading.

    Args:
        completions: TRL's messages.
        answer: gold, boxed.

    Returns:
        One reward each.
    """
    return [float(gold in completion[0]["content"]) for completion, gold in zip(completions, answer, strict=True)]


class StepClock(TrainerCallback):
    """Keeps the wall seconds of each optimizer step, generation included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begin = 0.0

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Start the clock."""
        self._begin = time.monotonic()

    def on_step_end(self, *_: object, **__: object) -> None:
        """Read the clock."""
        self.seconds.append(time.monotonic() - self._begin)


def main() -> None:
    """Train for a few steps and print how long each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="folder in ViRL39K's layout")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--batch", type=int, default=128, help="trajectories of one forward pass")
    parser.add_argument("--suffix", required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = Path(arguments.data)
    table = pq.read_table(next(folder.glob("*.parquet"))).to_pylist()
    rows = [row for row in table if len(row["image"]) == 1][: arguments.prompts * arguments.steps]
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["question"].replace("<image>", "") + arguments.suffix}],
                "image": Image.open(folder / row["image"][0]).convert("RGB"),
                "answer": row["answer"],
            }
            for row in rows
        ]
    )
    total = arguments.prompts * arguments.samples
    clock = StepClock()
    trainer = GRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=torch.float32),
        processing_class=AutoProcessor.from_pretrained(arguments.model, padding_side="left"),
        reward_funcs=exact_match,
        train_dataset=data,
        callbacks=[clock],
        args=GRPOConfig(
            output_dir="trl-output",
            per_device_train_batch_size=arguments.batch,
            gradient_accumulation_steps=total // arguments.batch,
            num_generations=arguments.samples,
            max_completion_length=arguments.max_tokens,
            temperature=1.0,
            beta=0.0,
            learning_rate=2e-4,
            max_steps=arguments.steps,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1000,
        ),
    )
    trainer.train()
    print(json.dumps({"seconds": clock.seconds, "trajectories": total}))


if __name__ == "__main__":
    main()
