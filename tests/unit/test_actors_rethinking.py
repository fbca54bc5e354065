"""Forced rethinking in the rollout worker, on scripted responses: what the engine is asked for, and what becomes a trajectory."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.answers import EvaluatedAnswer
from actors.rethinking import Rethinker, evaluation_recipe_of, recipe_of
from actors.worker import RolledOut, RolloutRequest, RolloutWorker
from algorithms.rethinking import PAPER_CODE
from algorithms.schema import from_arrow, to_record_batch
from algorithms.types import Prompt, Trajectory, VersionSpan
from conf.schema import (
    AlgorithmConfig,
    EvaluationMode,
    ModelConfig,
    Placement,
    RethinkingConfig,
    RethinkingVariant,
    RewardConfig,
    RolloutConfig,
)
from tasks.grading import GraderPool
from tasks.prompts import PromptEncoder, allowed_token_ids, load_tokenizer
from tests.fakes import Line, ScriptedEngine

TRIGGER = " Wait, let me check again."
RIGHT, WRONG = "3+5=8. \\boxed{8}", "3+5=9. \\boxed{9}"
SETTINGS = RethinkingConfig(
    enabled=True, fraction=1.0, self_verification=[TRIGGER], self_correction=[], self_questioning=[], category_weights=(1.0, 0.0, 0.0)
)


@pytest.fixture(scope="module")
def grader() -> Iterator[GraderPool]:
    pool = GraderPool(processes=1, timeout_s=5.0, memory_bytes=2 * 2**30)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path):
    return load_tokenizer(tiny_model)


@dataclasses.dataclass
class Scene:
    """A worker with a scripted engine."""

    engine: ScriptedEngine
    worker: RolloutWorker

    def rollout(self, *, prompt: Prompt | None = None, seed: int = 1) -> RolledOut:
        prompt = prompt or question()
        return asyncio.run(self.worker.rollout(RolloutRequest(group_id=f"{prompt.prompt_id}@0", turn=0, prompt=prompt, seed=seed)))

    def answer(self, mode: EvaluationMode, *, prompt: Prompt | None = None) -> EvaluatedAnswer:
        return asyncio.run(self.worker.answer(prompt or question(), max_response_tokens=64, mode=mode))

    @property
    def seconds(self) -> list[dict]:
        """Requests for a y2."""
        return [request for request in self.engine.requests if request["request_id"].endswith("/y2")]


@pytest.fixture
def scene(tokenizer, grader) -> Callable[..., Scene]:
    def build(
        firsts: Sequence[Line | str], second: Callable[[int], Line] | str = f" {RIGHT}", *, max_response_tokens: int = 64, **changes: object
    ) -> Scene:
        lines = [line if isinstance(line, Line) else Line(text=line) for line in firsts]
        engine = ScriptedEngine(tokenizer, lines, (lambda _: Line(text=second)) if isinstance(second, str) else second)
        worker = RolloutWorker(
            engine=engine,
            encoder=PromptEncoder(tokenizer, suffix=" Answer.", max_prompt_tokens=192, min_pixels=56 * 56, max_pixels=112 * 112),
            grader=grader,
            allowed_token_ids=allowed_token_ids(tokenizer),
            algorithm=AlgorithmConfig(samples_per_prompt=len(lines)),
            model=ModelConfig(max_response_tokens=max_response_tokens),
            rollout=RolloutConfig(),
            reward_config=RewardConfig(),
            rethinking=dataclasses.replace(SETTINGS, **changes),
        )
        return Scene(engine, worker)

    return build


def question(*images: Path) -> Prompt:
    return Prompt(
        prompt_id="p0",
        question="<image>" * len(images) + "What is 3+5?",
        image_paths=tuple(map(str, images)),
        answer="8",
        category="c",
        source="s",
    )


def parts(trajectory: Trajectory, tokenizer) -> dict[str, str]:
    """The text of each segment."""
    ids = trajectory.response_token_ids
    return {s.kind: tokenizer.decode(ids[s.start : s.end], skip_special_tokens=True) for s in trajectory.segments}


def check_form(trajectory: Trajectory) -> None:
    """What every trajectory promises: arrays of one length, segments and spans that cover them, masks and log-probs of the trigger."""
    length = trajectory.num_response_tokens
    assert len(trajectory.behavior_logprobs) == len(trajectory.loss_mask) == length
    for pieces in (trajectory.segments, trajectory.version_spans):
        assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces)][:-1]
        assert pieces[-1].end == length
    for segment in trajectory.segments:
        sampled = segment.kind != "trigger"
        assert (trajectory.loss_mask[segment.start : segment.end] == sampled).all()
        assert sampled or (trajectory.behavior_logprobs[segment.start : segment.end] == 0).all()


def test_off_nothing_goes_on(scene, tokenizer) -> None:
    made = scene([RIGHT, WRONG], enabled=False)
    rolled = made.rollout()
    assert len(made.engine.requests) == 1
    assert [t.segments[0].kind for t in rolled.group.trajectories] == ["y1", "y1"]
    assert all(len(t.segments) == 1 and t.y1_reward is None for t in rolled.group.trajectories)
    assert rolled.counts.generated_tokens == sum(t.num_response_tokens for t in rolled.group.trajectories)
    assert "rethinking/forced_fraction" in rolled.counts.metrics() and rolled.counts.forced == 0


@pytest.mark.parametrize(("fraction", "forced"), [(0.0, 0), (1.0, 4)])
def test_none_or_all_go_on(scene, fraction: float, forced: int) -> None:
    made = scene([RIGHT, WRONG, RIGHT, WRONG], fraction=fraction)
    counts = made.rollout().counts
    assert counts.forced == len(made.seconds) == forced
    assert counts.skipped == Counter(not_drawn=4 - forced)


def test_the_engine_gets_y1_token_by_token(scene, tokenizer) -> None:
    made = scene([RIGHT, WRONG])
    rolled = made.rollout()
    (request, *others) = made.engine.requests
    trigger = tokenizer.encode(TRIGGER, add_special_tokens=False)
    for text, other in zip((RIGHT, WRONG), others, strict=True):
        y1 = tokenizer.encode(text, add_special_tokens=False)
        assert other["prompt_token_ids"] == [*request["prompt_token_ids"], *y1, *trigger]
        assert other["max_tokens"] == 64 - len(y1) - len(trigger)
        assert other["temperature"] == 1.0 and other["n"] == 1
    assert others[0]["seed"] != others[1]["seed"]
    assert len({request["request_id"] for request in made.engine.requests}) == 3
    for trajectory, text in zip(rolled.group.trajectories, (RIGHT, WRONG), strict=True):
        check_form(trajectory)
        assert parts(trajectory, tokenizer) == {"y1": text, "trigger": TRIGGER, "y2": f" {RIGHT}"}
        assert trajectory.response_text == f"{text}{TRIGGER} {RIGHT}"
        assert trajectory.response_token_ids[-1] == tokenizer.eos_token_id
        y1_end = trajectory.segments[0].end
        np.testing.assert_array_equal(trajectory.behavior_logprobs[:y1_end], -0.1 * np.arange(1, y1_end + 1, dtype=np.float32))


@pytest.mark.parametrize("ending", ["", " ", "\n", "\n\n", ".", "Wai", " Wait", "\\boxed{8", "é", "\N{GRINNING FACE}"])
@pytest.mark.parametrize("trigger", [TRIGGER, "\n\nWait, does it seem right?", "t, no"])
def test_whatever_y1_ends_with_its_tokens_stay(scene, tokenizer, ending: str, trigger: str) -> None:
    text = f"It is 8{ending}"
    made = scene([text, text], self_verification=[trigger])
    (trajectory, _) = made.rollout().group.trajectories
    y1, added = tokenizer.encode(text, add_special_tokens=False), tokenizer.encode(trigger, add_special_tokens=False)
    assert trajectory.response_token_ids.tolist()[: len(y1) + len(added)] == [*y1, *added]
    assert parts(trajectory, tokenizer)["trigger"] == trigger
    check_form(trajectory)


def test_some_of_those_triggers_would_tokenise_otherwise_with_their_y1(tokenizer) -> None:
    """Else the test above would show nothing."""

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    assert ids("It is 8\n" + "\n\nWait, does it seem right?") != ids("It is 8\n") + ids("\n\nWait, does it seem right?")
    assert ids("It is 8Wai" + "t, no") != ids("It is 8Wai") + ids("t, no")


def test_half_a_character_at_the_end_of_y1(tokenizer) -> None:
    rethinker = Rethinker(tokenizer, allowed_token_ids(tokenizer), dataclasses.replace(recipe_of(SETTINGS), cut_fraction=1.0))
    ids = np.array(tokenizer.encode("x \\boxed{\N{GRINNING FACE}", add_special_tokens=False)[:-1], dtype=np.int32)
    kept, rest = rethinker._cut(ids)
    assert tokenizer.decode(ids[:kept]) + rest == "x "


def test_a_right_y2_earns_what_a_wrong_y1_did_not(scene) -> None:
    rolled = scene([RIGHT, WRONG, WRONG], fraction=1.0).rollout()
    assert [t.reward for t in rolled.group.trajectories] == [1.0, 1.0, 1.0]
    assert [t.y1_reward for t in rolled.group.trajectories] == [1.0, 0.0, 0.0]
    assert [t.advantage for t in rolled.group.trajectories] == [0.0, 0.0, 0.0]  # of the group as it is trained, not as it was sampled
    assert rolled.counts.transitions == Counter(wrong_to_right=2, right_to_right=1)


def test_a_wrong_y2_counts_as_what_it_is(scene) -> None:
    rolled = scene([RIGHT, RIGHT, WRONG], lambda number: Line(text=f" {WRONG if number else RIGHT}")).rollout()
    assert [t.reward for t in rolled.group.trajectories] == [1.0, 0.0, 0.0]
    assert rolled.counts.transitions == Counter(right_to_right=1, right_to_wrong=1, wrong_to_wrong=1)
    assert rolled.counts.kept == rolled.counts.forced == 3


def test_a_y2_without_an_answer_leaves_that_of_y1(scene) -> None:
    rolled = scene([RIGHT, WRONG], " I am sure.").rollout()
    assert [t.correct for t in rolled.group.trajectories] == [True, False]


def test_appended_they_make_the_group_larger(scene, tokenizer) -> None:
    rolled = scene([RIGHT, WRONG], placement=Placement.append).rollout()
    trajectories = rolled.group.trajectories
    assert [t.trajectory_id for t in trajectories] == ["p0@0/0", "p0@0/1", "p0@0/2", "p0@0/3"]
    assert [len(t.segments) for t in trajectories] == [1, 1, 3, 3]
    assert [t.reward for t in trajectories] == [1.0, 0.0, 1.0, 1.0]
    assert [t.y1_reward for t in trajectories] == [None, None, 1.0, 0.0]
    assert [t.advantage for t in trajectories] == pytest.approx([0.25, -0.75, 0.25, 0.25])
    sampled = sum(int(t.loss_mask.sum()) for t in trajectories)
    shared = sum(t.segments[0].end for t in trajectories[2:])  # y1s that are in two trajectories were sampled once
    assert rolled.counts.generated_tokens == sampled - shared
    assert rolled.group.is_effective


def test_extra_tokens_are_those_of_the_trigger_and_y2(scene) -> None:
    rolled = scene([RIGHT, WRONG]).rollout()
    assert rolled.counts.extra_tokens == sum(t.num_response_tokens - t.segments[0].end for t in rolled.group.trajectories)


def test_they_travel_as_arrow(scene) -> None:
    trajectories = scene([RIGHT, WRONG], placement=Placement.append).rollout().group.trajectories
    for before, after in zip(trajectories, from_arrow(to_record_batch(trajectories)), strict=True):
        assert (after.y1_reward, after.segments, after.version_spans) == (before.y1_reward, before.segments, before.version_spans)
        np.testing.assert_array_equal(after.loss_mask, before.loss_mask)


def test_y1_and_y2_of_different_versions(scene) -> None:
    rolled = scene([Line(text=RIGHT, version=3), Line(text=WRONG, version=3)], lambda number: Line(text=" 8", version=3 + number)).rollout()
    same, other = rolled.group.trajectories
    assert same.version_spans == (VersionSpan(start=0, end=same.num_response_tokens, version=3),)
    y1_end = other.segments[0].end
    assert [(span.start, span.version) for span in other.version_spans] == [(0, 3), (y1_end, 4)]
    assert other.policy_version == 3
    check_form(other)


def test_a_y1_at_the_length_limit_is_passed_over(scene) -> None:
    made = scene([Line(text=RIGHT * 9), RIGHT], max_response_tokens=30)
    rolled = made.rollout()
    assert rolled.group.trajectories[0].finish_reason == "length"
    assert rolled.counts.skipped == Counter(unfinished=1)
    assert len(made.seconds) == rolled.counts.forced == 1


def test_a_y1_that_leaves_no_room_is_passed_over(scene, tokenizer) -> None:
    y1, trigger = (len(tokenizer.encode(text, add_special_tokens=False)) for text in (RIGHT, TRIGGER))
    tight, loose = (scene([RIGHT, RIGHT], max_response_tokens=y1 + trigger + room) for room in (0, 1))
    assert tight.rollout().counts.skipped == Counter(no_room=2)
    rolled = loose.rollout()
    assert rolled.counts.forced == 2
    assert [request["max_tokens"] for request in loose.seconds] == [1, 1]


def test_a_y2_at_the_length_limit_is_an_unfinished_response(scene) -> None:
    rolled = scene([RIGHT, WRONG], f" {RIGHT}" * 9, max_response_tokens=40).rollout()
    for trajectory in rolled.group.trajectories:
        assert trajectory.num_response_tokens == 40
        assert trajectory.finish_reason == "length" and trajectory.reward == RewardConfig().invalid_reward
        check_form(trajectory)


def test_a_y1_without_an_answer_goes_on(scene, tokenizer) -> None:
    rolled = scene(["I do not know.", WRONG]).rollout()
    assert [t.correct for t in rolled.group.trajectories] == [True, True]
    assert rolled.counts.transitions == Counter(wrong_to_right=2)


def test_an_empty_y1_is_passed_over(scene) -> None:
    rolled = scene(["", RIGHT]).rollout()
    assert rolled.counts.skipped == Counter(empty=1)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_every_number_of_images_comes_along(scene, tmp_path: Path, number: int) -> None:
    paths = []
    for index in range(number):
        Image.new("RGB", (64, 64), (index * 40, 0, 0)).save(path := tmp_path / f"{index}.png")
        paths.append(path)
    made = scene([RIGHT, WRONG])
    rolled = made.rollout(prompt=question(*paths))
    (first, *others) = made.engine.requests
    assert len(first["image_hashes"]) == number and rolled.counts.forced == 2
    for other in others:
        assert other["image_hashes"] == first["image_hashes"] and other["images"] == first["images"]
        assert other["prompt_token_ids"][: len(first["prompt_token_ids"])] == first["prompt_token_ids"]


def test_a_cut_answer_is_not_in_the_prefix(scene, tokenizer) -> None:
    rolled = scene([RIGHT, "So:\n\nWait, 9? \\boxed{9}"], cut_fraction=1.0).rollout()
    texts = [t.response_text for t in rolled.group.trajectories]
    assert texts == [f"3+5=8. {TRIGGER} {RIGHT}", f"So:{TRIGGER} {RIGHT}"]
    for trajectory in rolled.group.trajectories:
        check_form(trajectory)


def test_a_cut_within_a_token_leaves_exactly_the_cut_text(scene, tokenizer) -> None:
    assert len(tokenizer.encode(" \\boxed{", add_special_tokens=False)) == 1  # the blank before the box stays, and is part of a token
    rolled = scene([RIGHT, RIGHT], cut_fraction=1.0).rollout()
    segments = parts(rolled.group.trajectories[0], tokenizer)
    assert segments["y1"] == "3+5=8." and segments["trigger"] == f" {TRIGGER}"


def test_a_trigger_of_special_tokens_is_refused(tokenizer) -> None:
    for text in ("Look: <|image_pad|>", "<|im_end|>", "<|im_start|>user"):
        with pytest.raises(ValueError, match="no plain text to the model"):
            Rethinker(tokenizer, allowed_token_ids(tokenizer), recipe_of(dataclasses.replace(SETTINGS, self_verification=[text])))


def test_recipes_follow_the_settings() -> None:
    config = RethinkingConfig(enabled=True, category_weights=(2.0, 0.0, 1.0), temperature=0.7, cut_fraction=0.25)
    recipe = recipe_of(config)
    weights = Counter()
    for trigger in recipe.triggers:
        weights[trigger.category] += trigger.weight
    assert weights == {"self_verification": 2.0, "self_questioning": 1.0}
    assert all(trigger.only_after is None for trigger in recipe.triggers)
    assert (recipe.fraction, recipe.temperature, recipe.cut_fraction, recipe.correct_only) == (0.5, 0.7, 0.25, False)
    paper = dataclasses.replace(config, variant=RethinkingVariant.paper_code)
    assert recipe_of(paper) is PAPER_CODE
    for settings in (config, paper):
        evaluation = evaluation_recipe_of(settings)
        assert evaluation.fraction == 1.0 and evaluation.temperature == 0.0 and not evaluation.correct_only
        assert all(trigger.only_after is None for trigger in evaluation.triggers)


def test_paper_code_keeps_right_y2s_only_and_samples_them_cooler(scene) -> None:
    """The whole of the variant in the worker: y2s by turns wrong, right, and too short; the choice of the trigger knows the label."""
    long_right, long_wrong = " so" * 31 + f" {RIGHT}", " so" * 31 + f" {WRONG}"
    turns = [Line(text=long_wrong), Line(text=long_right), Line(text=f" {RIGHT}")]
    made = scene([RIGHT, WRONG] * 8, lambda number: turns[number % 3], variant=RethinkingVariant.paper_code, max_response_tokens=512)
    rolled = made.rollout()
    counts = rolled.counts
    assert counts.forced == len(made.seconds) > 6
    assert {request["temperature"] for request in made.seconds} == {0.9}
    assert counts.kept == 2 and counts.dropped.keys() == {"wrong", "length", "enough_for_prompt"}
    assert sum(counts.transitions.values()) == counts.forced  # dropped ones are in the table
    replaced = [t for t in rolled.group.trajectories if len(t.segments) == 3]
    assert len(rolled.group.trajectories) == 16 and len(replaced) == 2 and all(t.correct for t in replaced)
    assert counts.generated_tokens > sum(t.num_response_tokens for t in rolled.group.trajectories)


class TestEvaluation:
    def test_none_is_y1(self, scene) -> None:
        made = scene([WRONG])
        answer = made.answer(EvaluationMode.none)
        assert not answer.correct_lenient and answer.forced is None and not made.seconds

    @pytest.mark.parametrize(
        ("y1", "y2", "forced", "bound"), [(WRONG, RIGHT, True, True), (RIGHT, WRONG, False, True), (WRONG, WRONG, False, False)]
    )
    def test_forced_can_hurt_and_bound_cannot(self, scene, y1: str, y2: str, forced: bool, bound: bool) -> None:
        made = scene([y1], f" {y2}")
        for mode, right in ((EvaluationMode.forced, forced), (EvaluationMode.bound, bound)):
            answer = made.answer(mode)
            assert answer.correct_lenient is answer.correct_strict is right
            assert answer.response == f"{y1}{TRIGGER} {y2}"
            assert answer.forced is not None
            assert (answer.forced.first_correct, answer.forced.final_correct) == (y1 == RIGHT, y2 == RIGHT)
            assert (answer.forced.y1, answer.forced.trigger, answer.forced.y2) == (y1, TRIGGER, f" {y2}")
        assert {(request["temperature"], request["seed"]) for request in made.engine.requests} == {(0.0, None)}

    def test_what_cannot_go_on_counts_as_it_is(self, scene) -> None:
        made = scene([Line(text=f"{RIGHT} " * 20)])
        answer = made.answer(EvaluationMode.forced)
        assert answer.passed_over == "unfinished" and answer.forced is None and answer.correct_lenient
        assert answer.finish_reason == "length"

    def test_a_question_gets_the_same_trigger_each_time(self, scene) -> None:
        triggers = [" Wait, one.", " Wait, two.", " Wait, three.", " Wait, four."]
        texts = set()
        for number in range(8):
            prompt = dataclasses.replace(question(), prompt_id=f"q{number}")
            found = {
                scene([y1], self_verification=triggers).answer(EvaluationMode.forced, prompt=prompt).forced.trigger for y1 in (RIGHT, WRONG)
            }
            assert len(found) == 1
            texts |= found
        assert len(texts) > 1

    def test_spontaneous_rethinking_is_y1_s(self, scene) -> None:
        assert not scene([RIGHT]).answer(EvaluationMode.forced).rethinks  # the forced "Wait" is not its own
        assert scene([f"{WRONG} Wait, {RIGHT}"]).answer(EvaluationMode.none).rethinks
