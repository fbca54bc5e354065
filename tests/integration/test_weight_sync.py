"""Weights that arrive in a running vLLM engine: exact, whole or not at all, and no token lost on the way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.engine import Completion, EngineError, PromptRefusedError, RolloutEngine
from actors.engine.processes import child_processes, vllm_processes_since
from tests.integration.tiny_models import DEVICE, MODEL, ROLLOUT, Judge, build, perturb, snapshot
from tests.tiny_weights import TensorSource, part_shipment, publish_once, published, whole_shipment
from weights.buckets import manifest_of
from weights.manifest import Part, WeightUpdateError
from weights.mirror import WeightMirror
from weights.publisher import WeightPublisher
from weights.staging import StagedUpdate, StagingArea

TOLERANCE = 1e-4
EXTENSION = "tests.integration.switchable_extension.SwitchableExtension"
RESPONSE = [5, 9, 77, 123, 30, 31, 32]


@dataclass
class Served:
    """A running engine, the model that it should be equal to, and the event loop that both tests and engine live on."""

    engine: RolloutEngine
    judge: Judge
    area: StagingArea
    runner: asyncio.Runner
    version: int = 0

    def stage(self, version: int, *, leave_out: int | None = None, parameters: Mapping[str, torch.Tensor] | None = None) -> StagedUpdate:
        weights = dict(self.judge.named_parameters) if parameters is None else parameters
        publication = publish_once(weights.items(), version, 2 * 2**20, str(self.area.folder))
        buckets, paths = list(publication.manifest.buckets), list(publication.paths)
        if leave_out is not None:
            del buckets[leave_out], paths[leave_out]
        return StagedUpdate(paths=tuple(paths), manifest=manifest_of(version, buckets))

    async def update(self, staged: StagedUpdate | None = None) -> None:
        staged = staged or self.stage(self.version + 1)
        try:
            receipt = await self.engine.update_weights(staged, staged.manifest.version, timeout_s=30.0)
            assert (receipt.version, receipt.checksum) == (staged.manifest.version, staged.manifest.checksum)
            self.version = staged.manifest.version
        finally:
            self.area.free(staged.paths)

    async def generate(self, **settings: object) -> list[Completion]:
        settings = {"n": 1, "temperature": 1.0, "max_tokens": 24, "seed": 1, **settings}
        return await self.engine.generate(self.judge.prompt(), [self.judge.image], ["picture"], **settings)

    async def difference(self) -> float:
        """How far the engine's log-probs of a fixed response are from Hugging Face's."""
        scored = await self.engine.score(self.judge.prompt(), [self.judge.image], ["picture"], RESPONSE)
        return float(np.abs(scored - self.judge.logprobs(self.judge.prompt(), RESPONSE)).max())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test with both kinds of output layer; make test has one with the layer of its own, which most tests are not about."""
    if "served" in metafunc.fixturenames:
        short = metafunc.function is test_logprobs_are_huggingface_s_before_and_after_an_update
        untied = pytest.param("untied", marks=() if short else pytest.mark.long)
        metafunc.parametrize("served", ["tied", untied], indirect=True, scope="module")


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = build(tmp_path_factory.mktemp("models") / request.param, tied=request.param == "tied")
    judge = Judge(folder)
    engine = RolloutEngine(str(folder), model=MODEL, rollout=ROLLOUT, device=DEVICE, seed=1, name="r0", worker_extension=EXTENSION)
    before = child_processes()
    with asyncio.Runner() as runner, StagingArea() as area:
        runner.run(engine.start())
        try:
            yield Served(engine, judge, area, runner)
        finally:
            runner.run(engine.close())
            assert not vllm_processes_since(before)
            assert engine._launched is not None and not engine._launched.folder.path.exists()


def test_progress_bars_share_a_lock_that_a_killed_process_does_not_leave_behind(served: Served) -> None:
    assert served.engine._launched is not None
    assert any(path.is_socket() for path in served.engine._launched.folder.path.iterdir()), "vLLM's sockets lie elsewhere"
    assert served.runner.run(served.engine._engine.collective_rpc("progress_bar_lock")) == ["RLock"]


def test_logprobs_are_huggingface_s_before_and_after_an_update(served: Served) -> None:
    async def check() -> None:
        assert await served.difference() < TOLERANCE
        perturb(served.judge.model)
        assert await served.difference() > 1e-2, "the perturbation must be one that an update can miss"
        await served.update()
        assert served.engine.version == served.version
        assert await served.difference() < TOLERANCE
        perturb(served.judge.model)
        await served.update()
        assert await served.difference() < TOLERANCE

    served.runner.run(check())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_those_of_the_sampling_distribution(served: Served, temperature: float) -> None:
    allowed = list(range(0, 400))
    samples = served.runner.run(served.generate(n=4, temperature=temperature, allowed_token_ids=allowed))
    assert len(samples) == 4
    assert len({tuple(sample.token_ids.tolist()) for sample in samples}) == 4, "samples of one request must have streams of their own"
    for sample in samples:
        expected = served.judge.logprobs(served.judge.prompt(), sample.token_ids.tolist(), allowed=allowed, temperature=temperature)
        np.testing.assert_allclose(sample.logprobs, expected, atol=TOLERANCE)


@pytest.mark.parametrize("truncation", [{"top_p": 0.5}, {"top_k": 20}], ids=str)
def test_truncated_sampling_reports_a_distribution_that_the_learner_cannot_know(served: Served, truncation: dict[str, float]) -> None:
    """Why top-p and top-k are refused: the log-probs are exact, over a set of tokens that depends on the weights that sampled."""
    samples = served.runner.run(served.generate(n=4, **truncation))
    for sample in samples:
        ids = sample.token_ids.tolist()
        whole = served.judge.distributions(served.judge.prompt(), ids)
        ordered = np.sort(np.exp(whole), axis=1)[:, ::-1]
        sizes = (ordered.cumsum(1) - ordered < truncation["top_p"]).sum(1) if "top_p" in truncation else [truncation["top_k"]] * len(ids)
        mass = np.array([row[:size].sum() for row, size in zip(ordered, sizes, strict=True)])
        own = whole[np.arange(len(ids)), ids]
        np.testing.assert_allclose(sample.logprobs, own - np.log(mass), atol=TOLERANCE)  # renormalised over the kept tokens
        assert np.abs(sample.logprobs - own).max() > 0.1  # and not the learner's, which knows the whole vocabulary only


def test_greedy_is_the_argmax_and_takes_one_sample(served: Served) -> None:
    async def check() -> None:
        (first,) = await served.generate(temperature=0.0, seed=None, max_tokens=8)
        (second,) = await served.generate(temperature=0.0, seed=None, max_tokens=8)
        assert first.token_ids.tolist() == second.token_ids.tolist()
        ids = first.token_ids.tolist()
        for token in range(0, served.judge.model.config.text_config.vocab_size, 37):
            changed = served.judge.logprobs(served.judge.prompt(), [*ids[:3], token])[-1]
            assert changed <= served.judge.logprobs(served.judge.prompt(), ids[:4])[-1] + TOLERANCE

    served.runner.run(check())


def test_more_seeded_prompts_than_fit_into_one_batch_do_not_end_the_engine(served: Served) -> None:
    """With chunked prefill a prompt is cut at the token budget, and vLLM then rewinds a CPU generator, which cannot be rewound."""

    async def check() -> None:
        prompts = [served.judge.prompt(f"{number} " + "What is shown in this picture? " * 16) for number in range(40)]
        assert sum(map(len, prompts)) > 2 * ROLLOUT.max_batched_tokens
        requests = (
            served.engine.generate(prompt, [served.judge.image], ["picture"], n=2, temperature=1.0, max_tokens=8, seed=number)
            for number, prompt in enumerate(prompts)
        )
        answers = await asyncio.gather(*requests)
        assert [len(samples) for samples in answers] == [2] * len(prompts)
        await served.engine.health()

    served.runner.run(check())


def test_end_of_sequence_token_is_kept_with_its_logprob(served: Served) -> None:
    end = served.judge.tokenizer.eos_token_id
    (sample,) = served.runner.run(served.generate(allowed_token_ids=[end]))
    assert sample.token_ids.tolist() == [end]
    assert sample.logprobs.tolist() == [0.0]
    assert sample.finish_reason == "stop"
    assert sample.text == ""


def test_seeds_repeat_and_neighbouring_seeds_share_nothing(served: Served) -> None:
    async def check() -> None:
        first, again, neighbour = [await served.generate(n=3, seed=seed) for seed in (11, 11, 12)]
        assert [s.token_ids.tolist() for s in first] == [s.token_ids.tolist() for s in again]
        assert not {tuple(s.token_ids.tolist()) for s in first} & {tuple(s.token_ids.tolist()) for s in neighbour}

    served.runner.run(check())


def test_banned_ids_are_never_sampled_even_when_the_model_wants_them(served: Served) -> None:
    vocab_size = served.judge.model.config.text_config.vocab_size
    image_pad = served.judge.image_token_id
    allowed = [token for token in range(len(served.judge.tokenizer)) if token != image_pad]
    assert vocab_size >= len(served.judge.tokenizer)
    kept = snapshot(served.judge.model)
    rows = served.judge.model.lm_head.weight.data
    try:
        # Long rows of opposite sign: whatever the hidden state is, one of the two ids has by far the largest logit.
        rows[image_pad] = 50.0 * rows.abs().max() * torch.sign(torch.randn(rows.shape[1]))
        rows[vocab_size - 1] = -rows[image_pad]
        served.runner.run(served.update())
        unbanned = served.runner.run(served.generate(n=8, max_tokens=12))
        banned = served.runner.run(served.generate(n=8, max_tokens=12, allowed_token_ids=allowed))
        wanted = {image_pad, vocab_size - 1}
        assert any(wanted & set(sample.token_ids.tolist()) for sample in unbanned), "the model must want the banned ids"
        for sample in banned:
            assert set(sample.token_ids.tolist()) <= set(allowed)
            expected = served.judge.logprobs(served.judge.prompt(), sample.token_ids.tolist(), allowed=allowed)
            np.testing.assert_allclose(sample.logprobs, expected, atol=TOLERANCE)
    finally:
        served.judge.model.load_state_dict(kept)
        served.runner.run(served.update())


def test_tied_output_layer_needs_the_remedy(served: Served) -> None:
    if not served.judge.model.config.tie_word_embeddings:
        pytest.skip("an output layer of its own is loaded like any other")

    async def check() -> None:
        vllm_engine = served.engine._engine
        await vllm_engine.collective_rpc("switch_head_remedy", args=(False,))
        perturb(served.judge.model)
        await served.update()
        without = await served.difference()
        await vllm_engine.collective_rpc("switch_head_remedy", args=(True,))
        await served.update()
        assert without > 1e-3
        assert await served.difference() < TOLERANCE

    served.runner.run(check())


def test_corrupt_bucket_leaves_the_old_weights_in_service(served: Served) -> None:
    async def check() -> None:
        await served.update()
        kept = snapshot(served.judge.model)
        perturb(served.judge.model)
        new = snapshot(served.judge.model)
        staged = served.stage(served.version + 1)
        with open(staged.paths[1], "r+b") as file:
            file.seek(-64, os.SEEK_END)
            file.write(b"\xff" * 64)
        with pytest.raises(WeightUpdateError, match=r"00001\.safetensors: the checksum is"):
            await served.update(staged)
        served.judge.model.load_state_dict(kept)
        assert served.engine.version == served.version
        assert await served.difference() < TOLERANCE
        served.judge.model.load_state_dict(new)
        await served.update()
        assert await served.difference() < TOLERANCE

    served.runner.run(check())


def test_missing_bucket_leaves_the_old_weights_in_service(served: Served) -> None:
    async def check() -> None:
        await served.update()
        kept = snapshot(served.judge.model)
        perturb(served.judge.model)
        with pytest.raises(WeightUpdateError, match=r"lacks .*weight"):
            await served.update(served.stage(served.version + 1, leave_out=1))
        served.judge.model.load_state_dict(kept)
        assert await served.difference() < TOLERANCE
        perturb(served.judge.model)
        await served.update()
        assert await served.difference() < TOLERANCE

    served.runner.run(check())


def test_update_that_breaks_off_while_loading_stops_service_until_a_whole_one(served: Served) -> None:
    """The files are whole, but hold a shape that the model refuses in the middle of loading."""

    async def check() -> None:
        await served.engine._engine.collective_rpc("forget_parameters")
        perturb(served.judge.model)
        parameters = dict(served.judge.named_parameters)
        name = "model.language_model.layers.1.self_attn.q_proj.weight"
        parameters[name] = parameters[name][:-1].clone()
        staged = served.stage(served.version + 1, parameters=parameters)
        with pytest.raises(WeightUpdateError, match="two versions"):
            await served.update(staged)
        with pytest.raises(EngineError, match="two versions"):
            await served.generate()
        with pytest.raises(EngineError, match="two versions"):
            await served.engine.health()
        await served.update()
        await served.engine.health()
        assert await served.difference() < TOLERANCE

    served.runner.run(check())


def test_engine_that_answers_another_checksum_stops_serving_until_a_whole_update(served: Served) -> None:
    async def check() -> None:
        await served.engine._engine.collective_rpc("answer_wrongly")
        perturb(served.judge.model)
        sent = served.stage(served.version + 1)
        message = f"r0 answers 0123456789abcdef for the checksum of its weights, {sent.manifest.checksum} was sent"
        with pytest.raises(WeightUpdateError, match=message):
            await served.update(sent)
        with pytest.raises(EngineError, match=message):
            await served.generate()
        await served.update()
        assert await served.difference() < TOLERANCE

    served.runner.run(check())


@pytest.mark.parametrize("changes", [20, pytest.param(100, marks=pytest.mark.long)])
def test_logprobs_are_exact_after_random_changes(served: Served, changes: int) -> None:
    """Numbers changed at random travel as changes only, from the sender's files to the receiver's copy to the engine."""

    async def check() -> None:
        weights, random = TensorSource(served.judge.named_parameters), np.random.default_rng(5)
        sender = WeightPublisher(weights, bucket_bytes=2 * 2**20, sends=True, root=str(served.area.folder))
        mirror, first = WeightMirror(served.area), served.version
        for version in range(first + 1, first + changes + 2):
            update = published(sender, version)
            shipment = part_shipment(update) if update.base else whole_shipment(*sender.whole())
            assert update.base is None or set(update.parts) == {Part.changes}
            staged = mirror.take(shipment, shipment.payloads)
            if (version - first) % 20 == 1:
                receipt = await served.engine.update_weights(staged, version, timeout_s=30.0)
                assert receipt.checksum == update.manifest.checksum
                assert await served.difference() < TOLERANCE
            for tensor in weights.tensors.values():
                changed = torch.from_numpy(random.random(tuple(tensor.shape)) < 0.02)
                tensor[changed] += 0.05 * torch.randn(int(changed.sum()))
        served.version = first + changes + 1
        assert version == served.version and served.engine.version == version
        await served.update()
        assert await served.difference() < TOLERANCE
        sender.close()

    served.runner.run(check())


def test_update_in_mid_generation_loses_no_token(served: Served) -> None:
    async def crossed_after(delay_s: float) -> int:
        """Samples that an update came into the middle of, when it begins so long after their requests."""
        end = served.judge.tokenizer.eos_token_id
        allowed = [token for token in range(400) if token != end]
        old = snapshot(served.judge.model)
        await served.update()
        first = served.version
        running = [asyncio.create_task(served.generate(n=2, max_tokens=60, seed=seed, allowed_token_ids=allowed)) for seed in range(4)]
        await asyncio.sleep(delay_s)
        perturb(served.judge.model, scale=0.01)
        await served.update()
        new = snapshot(served.judge.model)
        groups = await asyncio.wait_for(asyncio.gather(*running), 60)
        crossed = 0
        for sample in (sample for group in groups for sample in group):
            assert len(sample.token_ids) == len(sample.logprobs) == 60
            assert sample.version_spans[0].start == 0 and sample.version_spans[-1].end == 60
            assert [span.start for span in sample.version_spans[1:]] == [span.end for span in sample.version_spans[:-1]]
            assert [span.version for span in sample.version_spans] in ([first], [first, first + 1], [first + 1])
            crossed += len(sample.version_spans) == 2
            for state, version in ((old, first), (new, first + 1)):  # the new one last: it is in service
                served.judge.model.load_state_dict(state)
                expected = served.judge.logprobs(served.judge.prompt(), sample.token_ids.tolist(), allowed=allowed)
                for span in sample.version_spans:
                    if span.version == version:
                        np.testing.assert_allclose(sample.logprobs[span.start : span.end], expected[span.start : span.end], atol=TOLERANCE)
        return crossed

    async def check() -> None:
        for delay_s in (0.15, 0.1, 0.2, 0.05, 0.3, 0.02, 0.5, 0.8):  # a generation takes some tenths of a second, on whatever machine
            if await crossed_after(delay_s):
                return
        pytest.fail("no update came in mid-generation")

    served.runner.run(check())


def test_expanded_prompt_is_refused(served: Served) -> None:
    prompt = [token for token in served.judge.prompt() for _ in range(4 if token == served.judge.image_token_id else 1)]
    with pytest.raises(PromptRefusedError, match="4 image pads came with 1 images"):
        served.runner.run(served.engine.generate(prompt, [served.judge.image], ["picture"], temperature=1.0, max_tokens=4, seed=1))


def test_bad_requests_are_refused_one_by_one(served: Served) -> None:
    async def check() -> None:
        engine, image = served.engine, served.judge.image
        with pytest.raises(PromptRefusedError, match="maximum context length"):
            await engine.generate([40] * 500, [], [], temperature=1.0, max_tokens=4, seed=1)
        with pytest.raises(PromptRefusedError, match="hashes"):
            await engine.generate(served.judge.prompt(), [image], [], temperature=1.0, max_tokens=4, seed=1)
        with pytest.raises(PromptRefusedError, match="temperature"):
            await served.generate(temperature=-1.0)
        with pytest.raises(EngineError, match="within 0 s"):
            await served.generate(timeout_s=0.001)
        await served.engine.health()
        assert await served.difference() < TOLERANCE

    served.runner.run(check())


def test_the_pil_image_processor_is_not_the_engine_s(served: Served) -> None:
    async def check() -> None:
        scored = await served.engine.score(served.judge.prompt(), [served.judge.image], ["picture"], RESPONSE)
        pil = served.judge.logprobs(served.judge.prompt(), RESPONSE, pil=True)
        assert np.abs(scored - pil).max() > TOLERANCE
        assert await served.difference() < TOLERANCE

    served.runner.run(check())


def test_killed_engine_is_told_and_closing_still_works(served: Served, tmp_path: Path) -> None:
    """Runs last of the module for each engine."""

    async def check() -> None:
        request = asyncio.create_task(served.generate(n=4, max_tokens=64))
        await asyncio.sleep(0.05)
        for process in served.engine._launched.processes:
            process.kill()
        with pytest.raises(EngineError, match="r0 died"):
            await asyncio.wait_for(request, 30)
        with pytest.raises(EngineError):
            await served.engine.health()
        with pytest.raises(EngineError):
            await served.update()

    served.runner.run(check())
