"""Models of several architectures through the real engine: prompts as their folders say, answers as transformers computes them."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from actors.engine import RolloutEngine
from algorithms.types import Prompt
from conf.schema import Device, Dtype, ModelConfig, RolloutConfig
from tasks.families import PromptForm, read_form
from tasks.prompts import PromptEncoder
from tests.benchmark_fixtures import MMMU, WRITERS, write
from tests.integration.conftest import ROOT, Descendants, clean_environment
from tests.tiny_families import BUILDERS, build_llama

MODEL = ModelConfig(dtype=Dtype.float32, max_prompt_tokens=256, max_response_tokens=24, min_pixels=32 * 32, max_pixels=128 * 128)
ROLLOUT = RolloutConfig(max_concurrent_sequences=8, max_batched_tokens=1024, kv_cache_bytes=32 * 2**20, timeout_s=60.0)
PICTURES = [Image.fromarray(np.random.default_rng(n).integers(0, 255, (70, 100 + n, 3), dtype=np.uint8)) for n in range(2)]
NUM_QUESTIONS = 640  # enough to kill an actor in their midst
QUESTIONS = ("What is <image> and what is <image>?", "How many <image>?", "What is 3+5?")


def questions_for(form: PromptForm) -> list[str]:
    return [question for question in QUESTIONS if form.image_pad is not None or "<image>" not in question]


async def _engine_answers(folder: Path, form: PromptForm) -> list[tuple[np.ndarray, int, np.ndarray, np.ndarray]]:
    """Of each question: prompt ids, number of pictures, response ids, log-probs."""
    encoder = PromptEncoder(form.tokenizer, suffix="", max_prompt_tokens=256, image_pad=form.image_pad, count_tokens=form.count_tokens)
    engine = RolloutEngine(str(folder), model=MODEL, rollout=ROLLOUT, device=Device.cpu, seed=1, image_pad_id=form.image_pad_id)
    try:
        await engine.start()
        answers = []
        for question in questions_for(form):
            pictures = PICTURES[: question.count("<image>")]
            prompt = Prompt(
                prompt_id="q", question=question, image_paths=tuple(map(str, range(len(pictures)))), answer="", category="", source=""
            )
            ids = encoder.encode(prompt, [(picture.height, picture.width) for picture in pictures])
            (completion,) = await engine.generate(
                ids,
                pictures,
                [f"{n:064x}" for n in range(len(pictures))],
                temperature=0.0,
                max_tokens=16,
                seed=None,
                allowed_token_ids=form.allowed_token_ids,
            )
            answers.append((ids, len(pictures), completion.token_ids, completion.logprobs))
        return answers
    finally:
        await engine.close()


@torch.no_grad()
def _judged(folder: Path, form: PromptForm, prompt: np.ndarray, pictures: int, response: np.ndarray) -> np.ndarray:
    """[R] log-probs over the allowed ids, by transformers' model and processor of the folder."""
    text = form.tokenizer.decode(prompt)
    if form.image_pad is None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        inputs = {"input_ids": torch.tensor([prompt.tolist()])}
    else:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(folder)
        inputs = dict(processor(text=[text], images=PICTURES[:pictures] or None, return_tensors="pt", add_special_tokens=False))
        collapsed = [key for key, group in itertools.groupby(inputs["input_ids"][0].tolist()) for _ in _once(group, key, form)]
        assert collapsed == prompt.tolist()
    whole = torch.cat([inputs.pop("input_ids"), torch.tensor([response.tolist()])], dim=1)
    inputs.pop("attention_mask", None)
    if "mm_token_type_ids" in inputs:
        types = inputs.pop("mm_token_type_ids")
        inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros(1, len(response), dtype=types.dtype)], dim=1)
    logits = model(input_ids=whole, attention_mask=torch.ones_like(whole), **inputs).logits[0, -len(response) - 1 : -1].float()
    banned = torch.ones(logits.shape[-1], dtype=torch.bool)
    banned[form.allowed_token_ids] = False
    return logits.masked_fill(banned, -torch.inf).log_softmax(-1).gather(-1, whole[0, -len(response) :, None])[:, 0].numpy()


def _once(group, key: int, form: PromptForm):
    """A run of equal ids, with one pad for all of a picture's."""
    return [key] if key == form.image_pad_id else list(group)


# Qwen2.5-VL's answers are judged in test_weight_sync.py
@pytest.mark.parametrize("name", ["qwen3_vl", pytest.param("llava", marks=pytest.mark.long), "llama"])
def test_the_engine_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    folder = BUILDERS[name](tmp_path / name)
    form = read_form(folder, min_pixels=MODEL.min_pixels, max_pixels=MODEL.max_pixels)
    assert (form.image_pad is None) == (name == "llama")
    answers = asyncio.run(_engine_answers(folder, form))
    assert len(answers) == len(questions_for(form))
    for prompt, pictures, response, logprobs in answers:
        expected = _judged(folder, form, prompt, pictures, response)
        assert np.abs(logprobs - expected).max() < 2e-3, name
        assert set(response.tolist()) <= set(form.allowed_token_ids)


@pytest.mark.long  # test_own_data.py kills an actor of another command, over the same loop
def test_a_text_only_model_is_evaluated_although_all_actors_are_killed(tmp_path: Path) -> None:
    """The command, with two rollout actors that are killed in the midst of the answers; others take their places.

    Every text question has its answer in all modes, and the questions with pictures, which this model doesn't take, are named.
    """
    model = build_llama(tmp_path / "model")
    folder = WRITERS["mmmu"](tmp_path / "benchmarks" / "mmmu")
    asked = {"question_type": "open", "options": "[]", "answer": "3"}
    rows = [{"id": f"validation_Physics_{n}", "question": f"What is {n}+3?", **asked} for n in range(NUM_QUESTIONS)]
    write(folder / "Physics/validation-00000-of-00001.parquet", MMMU, rows)
    words = [
        "evaluation.benchmarks=[mmmu]", f"evaluation.benchmarks_dir={tmp_path}/benchmarks", f"data.image_cache={tmp_path}/cache",
        "evaluation.token_limits=[8,40]", "evaluation.mode=forced", "rollout.num_actors=2", "model.dtype=float32",
        "model.max_prompt_tokens=256", "rollout.max_concurrent_sequences=16", "rollout.max_batched_tokens=1024",
        "rollout.kv_cache_bytes=33554432", "cluster.dashboard=false", "cluster.num_cpus=2", "cluster.object_store_bytes=134217728",
    ]  # fmt: skip
    command = [sys.executable, "-m", "cluster", "evaluate", "default", *words, "--model", str(model), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    started = Descendants(process.pid)
    first_part = tmp_path / "out/answers/mmmu/forced/part-00000.parquet"
    while process.poll() is None and not first_part.exists():
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0][-3000:]
    actors = [found for found in started.alive() if " ".join(found.cmdline()).startswith("ray::RolloutActor")]
    assert len(actors) == 2 and sum(1 for _ in first_part.parent.iterdir()) < NUM_QUESTIONS // 64
    for actor in actors:
        actor.kill()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-3000:]
    started.must_be_gone()
    results = json.loads((tmp_path / "out/report.json").read_text())["benchmarks"][0]["results"]
    assert [(r["mode"], r["token_limit"]) for r in results] == [(mode, n) for mode in ("none", "forced", "bound") for n in (8, 40)]
    for result in results:
        assert result["missing"] == 0 and result["scored"] == NUM_QUESTIONS + 1  # and the one whose pictures are not published
        assert sum(result["not_scored"].values()) == 4
        assert all(reason.endswith("images for a model that takes none") for reason in result["not_scored"])
