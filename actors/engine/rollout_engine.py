"""The engine as the rollout role sees it: starting, sampling, scoring, closing.

Owns the form of requests and answers, and who may ask when. Must not know Ray, rewards, replay or the learner.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actors.engine.errors import EngineError, PromptRefusedError, refusals
from actors.engine.launch import LaunchedEngine, launch
from actors.engine.processes import condition_of
from actors.engine.requests import Completion, completion, engine_prompt, refuse_unfinished, sampling_limits, spread_seed
from actors.engine.settings import engine_arguments, set_environment
from actors.engine.together import admit, final_output
from actors.engine.updates import UpdateReceipt, WeightUpdater
from conf.schema import Device, ModelConfig, RolloutConfig
from weights.manifest import WeightUpdateError
from weights.staging import StagedUpdate

if TYPE_CHECKING:
    from PIL.Image import Image

_STAMP_TIMEOUT_S = 30.0  # for the first answer after the start


class RolloutEngine:
    """One vLLM engine; its methods may be called by many tasks of one event loop at once.

    Args:
        model_path: a Hugging Face folder with model, tokenizer and image processor.
        model: limits, pixels and number format.
        rollout: engine size, threads, time limits.
        device: CPU or GPU.
        seed: of vLLM's own random state; requests bring their own.
        name: stands in errors.
        worker_extension: what vLLM's workers import in addition, it must register the weight-transfer backend; None: weights.receiver's.
        image_pad_id: what stands for a picture in a prompt; None: the model's image token, if it has one.
        metrics_name: report vLLM's own metrics under this name through Ray, whose worker this process then has to be; None: don't.
    """

    def __init__(
        self,
        model_path: str,
        *,
        model: ModelConfig,
        rollout: RolloutConfig,
        device: Device,
        seed: int,
        name: str = "rollout engine",
        worker_extension: str | None = None,
        image_pad_id: int | None = None,
        metrics_name: str | None = None,
    ) -> None:
        self._model_path = model_path
        self._rollout = rollout
        self._device = device
        self._name = name
        self._arguments = engine_arguments(
            model_path,
            model=model,
            rollout=rollout,
            device=device,
            seed=seed,
            worker_extension=worker_extension,
            metrics_name=metrics_name,
        )
        self._reports = metrics_name is not None
        self._engine: Any = None
        self._updates: WeightUpdater | None = None
        self._launched: LaunchedEngine | None = None
        self._tokenizer: Any = None
        self._image_token_id = image_pad_id
        self._limits: tuple[Sequence[int], dict[str, Any]] | None = None

    @property
    def version(self) -> int:
        """The policy version of the weights in service."""
        return self._updater().version

    def condition(self) -> str:
        """How the engine's processes are: "running", "stopped" or "gone"; see processes.condition_of."""
        return condition_of(self._launched.processes if self._launched is not None else ())

    async def start(self, version: int = 0) -> None:
        """Start the engine's processes and load the model.

        Args:
            version: which policy version the model folder is.

        Raises:
            EngineError: when it fails or takes longer than rollout.start_timeout_s.
        """
        set_environment(self._device, rollout=self._rollout, local_model=os.path.isdir(self._model_path))
        self._launched = await launch(
            self._arguments, name=self._name, reports=self._reports, timeout_s=self._rollout.start_timeout_s
        )
        self._engine = self._launched.vllm
        self._tokenizer = self._engine.get_tokenizer()
        if self._image_token_id is None:
            self._image_token_id = getattr(self._engine.model_config.hf_config, "image_token_id", None)
        self._updates = WeightUpdater(self._engine, self._name)
        await self._updates.stamp(version, _STAMP_TIMEOUT_S)

    async def close(self) -> None:
        """End the engine with its processes and files; safe to call twice."""
        self._engine = self._updates = None
        if self._launched is not None:
            await self._launched.close()

    async def health(self) -> None:
        """Return when the engine can sample.

        Raises:
            EngineError: when it died, is closed, or holds weights that are not whole.
        """
        if self._ready().errored:
            raise EngineError(f"{self._name} died; its own log has the cause")

    async def generate(
        self,
        prompt_token_ids: NDArray[np.int32] | Sequence[int],
        images: Sequence[Image],
        image_hashes: Sequence[str],
        *,
        n: int = 1,
        temperature: float,
        top_p: float = 1.0,
        top_k: int = -1,
        max_tokens: int,
        seed: int | None,
        allowed_token_ids: Sequence[int] | None = None,
        stop_token_ids: Sequence[int] = (),
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> list[Completion]:
        """Sample n responses to one prompt.

        Args:
            prompt_token_ids: [P], exactly one image pad per image; the engine expands them itself.
            images: in the order of the image pads.
            image_hashes: one per image; equal hashes must mean equal pixels, the engine encodes such an image once.
            n: responses; each has a random stream of its own.
            temperature: 0 is greedy, then n must be 1.
            top_p: 1 is off.
            top_k: -1 is off.
            max_tokens: of one response.
            seed: None: not reproducible. The same seed, prompt and weights give the same distribution of random numbers.
            allowed_token_ids: only these are sampled; None: all, those past the tokenizer's end and image tokens included. Give every
                request the same list object, not a copy.
            stop_token_ids: end a response besides the tokenizer's end-of-sequence token.
            request_id: unique among running requests; None: a random one.
            timeout_s: None: rollout.timeout_s.

        Returns:
            n completions, log-probs exact for the distribution that each token was sampled from, also across a weight update.

        Raises:
            PromptRefusedError: for a prompt that is expanded already, too long, or has no image for a pad.
            EngineError: when the engine died or did not answer in time.
        """
        limits = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "max_tokens": max_tokens, "stop_token_ids": stop_token_ids}
        request_id = request_id or uuid.uuid4().hex
        request = self._request(prompt_token_ids, images, image_hashes, n=n, seed=seed, allowed_token_ids=allowed_token_ids, **limits)
        return self._completions(await self._run(*request, request_id, timeout_s), n, request_id)

    async def generate_together(self, requests: Sequence[dict[str, Any]], *, forget: bool) -> list[Coroutine[Any, Any, list[Completion]]]:
        """Hand over several prompts, which enter the engine in one of its steps.

        Args:
            requests: the arguments of generate, with a request_id each, in the order in which the engine is to meet them.
            forget: drop what is cached of former requests, so that the answers don't depend on them.

        Returns:
            For each what generate would be; to be awaited by whoever asked for it.

        Raises:
            EngineError: when the engine died or did not answer in time.
        """
        engine, built = self._ready(), []
        for request in requests:
            settings = dict(request)
            request_id = str(settings.pop("request_id"))
            try:
                built.append((*self._request(**settings), request_id))
            except PromptRefusedError as refusal:
                built.append(refusal)
        async with self._updater().held(self._rollout.timeout_s, forget=forget):
            queues = await admit(engine, built, name=self._name)
        return [
            self._follow(engine, queue, int(request["n"]), str(request["request_id"]))
            for queue, request in zip(queues, requests, strict=True)
        ]

    async def _follow(self, engine: Any, queue: Any, n: int, request_id: str) -> list[Completion]:
        """One admitted request to its completions."""
        if isinstance(queue, BaseException):
            raise queue
        try:
            async with asyncio.timeout(self._rollout.timeout_s):
                with refusals(self._name, f"request {request_id}"):
                    output = await final_output(engine, queue)
        except TimeoutError as error:
            raise EngineError(f"{self._name} did not answer request {request_id} within {self._rollout.timeout_s:.0f} s") from error
        return self._completions(output, n, request_id)

    def _request(
        self,
        prompt_token_ids: NDArray[np.int32] | Sequence[int],
        images: Sequence[Image],
        image_hashes: Sequence[str],
        *,
        n: int,
        temperature: float,
        seed: int | None,
        max_tokens: int,
        top_p: float = 1.0,
        top_k: int = -1,
        allowed_token_ids: Sequence[int] | None = None,
        stop_token_ids: Sequence[int] = (),
    ) -> tuple[dict[str, Any], Any]:
        """vLLM's form of a request; see generate."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        prompt = engine_prompt(prompt_token_ids, images, image_hashes, self._image_token_id)
        with refusals(self._name, "a request"):
            params = SamplingParams(
                n=n,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                max_tokens=max_tokens,
                seed=None if seed is None else spread_seed(seed),
                **self._limits_of(allowed_token_ids),
                stop_token_ids=list(stop_token_ids),
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,  # decoded once at the end instead of token by token
                output_kind=RequestOutputKind.FINAL_ONLY,  # anything else loses completions when n > 1
            )
        return prompt, params

    def _completions(self, output: Any, n: int, request_id: str) -> list[Completion]:
        """What vLLM answered, in our form."""
        if len(output.outputs) != n:
            raise EngineError(f"{self._name} returned {len(output.outputs)} of {n} responses to request {request_id}")
        # With n > 1 vLLM counts the cached tokens of the last response only, which is of no use to anybody.
        tokens = {"num_prompt_tokens": len(output.prompt_token_ids), "num_cached_tokens": (output.num_cached_tokens or 0) if n == 1 else 0}
        return [completion(sample, self._tokenizer, where=f"{self._name}, request {request_id}", **tokens) for sample in output.outputs]

    async def score(
        self,
        prompt_token_ids: NDArray[np.int32] | Sequence[int],
        images: Sequence[Image],
        image_hashes: Sequence[str],
        response_token_ids: NDArray[np.int32] | Sequence[int],
        *,
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]:
        """Log-probs of a given response.

        vLLM scores prompts before any processing: at temperature 1 and over the **full vocabulary**, whatever generate is told. Compare
        with log-probs of the learner without mask and at temperature 1.

        Args:
            prompt_token_ids: as for generate.
            images: as for generate.
            image_hashes: as for generate.
            response_token_ids: [R], R at least 1, without image pads.
            timeout_s: None: rollout.timeout_s.

        Returns:
            [R] float32, nats.

        Raises:
            PromptRefusedError: as for generate.
            EngineError: as for generate.
        """
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        response = [int(token) for token in response_token_ids]
        if not response:
            raise PromptRefusedError("a response of no tokens has no log-probs")
        prompt = engine_prompt([*prompt_token_ids, *response], images, image_hashes, self._image_token_id)
        params = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        output = await self._run(prompt, params, uuid.uuid4().hex, timeout_s)
        refuse_unfinished(output.outputs[0], f"{self._name}'s scoring")
        positions = output.prompt_logprobs[-len(response) :]
        return np.array([position[token].logprob for position, token in zip(positions, response, strict=True)], dtype=np.float32)

    async def expect_weights(self, paths: Sequence[str], version: int, *, timeout_s: float = 120.0) -> None:
        """Read a version while it is being written (see WeightUpdater.expect)."""
        await self._updater().expect(paths, version, timeout_s)

    async def update_weights(self, update: StagedUpdate, version: int, *, timeout_s: float = 120.0) -> UpdateReceipt:
        """Put new weights in service; running requests are paused and go on with them.

        Args:
            update: staged; its files may be removed when this returns.
            version: must be the manifest's.
            timeout_s: for all steps together.

        Returns:
            What the engine's processes say that they hold.

        Raises:
            WeightUpdateError: the update was refused. The old weights stay in service unless the message says otherwise; then nothing
                is sampled until the next whole update.
            EngineError: the engine died or did not answer in time.
        """
        if update.manifest.version != version:
            staged = update.manifest.version
            raise WeightUpdateError(f"{self._name} was told to take version {version}, the staged update is of version {staged}")
        return await self._updater().apply(update, timeout_s)

    async def init_weight_transfer(self, init_info: dict[str, Any], *, timeout_s: float) -> None:
        """Meet the trainer's end of a broadcast (see WeightUpdater.connect)."""
        await self._updater().connect(init_info, timeout_s)

    async def start_weight_update(self, *, timeout_s: float) -> None:
        """Begin an update that a trainer drives (see WeightUpdater.begin)."""
        await self._updater().begin(timeout_s)

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Take part in the trainer's broadcast (see WeightUpdater.receive)."""
        await self._updater().receive(update_info)

    async def finish_weight_update(self, version: int, checksum: str) -> None:
        """End an update that a trainer drives (see WeightUpdater.finish)."""
        await self._updater().finish(version, checksum)

    async def abandon_weight_update(self, reason: str) -> None:
        """Close an update that its trainer has given up (see WeightUpdater.abandon)."""
        await self._updater().abandon(reason)

    def _updater(self) -> WeightUpdater:
        if self._engine is None or self._updates is None:
            raise EngineError(f"{self._name} is not running")
        return self._updates

    def _ready(self) -> Any:
        """vLLM's engine, when it may sample."""
        updates = self._updater()
        problem = updates.broken or updates.mixed
        if problem is not None:
            raise EngineError(problem)
        return self._engine

    def _limits_of(self, allowed_token_ids: Sequence[int] | None) -> dict[str, Any]:
        """sampling_limits, remembered for the list that every request of a run brings."""
        if allowed_token_ids is None:
            return {}
        if self._limits is None or self._limits[0] is not allowed_token_ids:
            vocab_size = self._ready().model_config.get_vocab_size()
            self._limits = (allowed_token_ids, sampling_limits(allowed_token_ids, vocab_size))
        return self._limits[1]

    async def _run(self, prompt: dict[str, Any], params: Any, request_id: str, timeout_s: float | None) -> Any:
        """One request to its final output."""
        engine = self._ready()
        limit_s = self._rollout.timeout_s if timeout_s is None else timeout_s
        output = None
        try:
            async with asyncio.timeout(limit_s):
                with refusals(self._name, f"request {request_id}"):
                    async for final in engine.generate(prompt, params, request_id):
                        output = final
        except TimeoutError as error:
            raise EngineError(f"{self._name} did not answer request {request_id} within {limit_s:.0f} s") from error
        if output is None:
            raise EngineError(f"{self._name} ended request {request_id} without an answer")
        return output
