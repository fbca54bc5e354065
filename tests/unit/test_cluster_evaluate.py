"""The whole evaluation with rollout actors that answer from a table: resume, limits, deaths, rescoring, the report."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from actors.answers import EvaluatedAnswer, ForcedAnswer
from cluster import evaluate as evaluate_module
from cluster.evaluate import engine_settings, evaluate, model_digest
from cluster.rescore import rescore
from cluster.run_folder import RunFolderError
from conf.loading import ConfigError, load_config
from conf.schema import Config, EvaluationMode
from tasks.grading_processes import GraderProcesses
from tests.benchmark_fixtures import WRITERS

Respond = Callable[[str, int], str]  # prompt and token limit -> response; a token is a character


class FakeReplica:
    """A rollout actor that dies when it is told to."""

    def __init__(self, index: int, respond: Respond, asked: list[tuple[str, int]], dies_after: int | None) -> None:
        self.name, self.lost = f"rollout actor {index}", None
        self.actor = SimpleNamespace(evaluate=SimpleNamespace(remote=self._evaluate))
        self._respond, self._asked, self._dies_after, self._count = respond, asked, dies_after, 0

    async def _evaluate(self, prompts, limit, mode):
        (prompt,) = prompts
        self._count += 1
        if self._dies_after is not None and self._count > self._dies_after:
            raise RuntimeError("the actor is gone")
        assert all(Path(path).is_file() for path in prompt.image_paths)
        self._asked.append((prompt.prompt_id, limit))
        if "refuse" in prompt.question:
            return [], [(prompt.prompt_id, "prompt too long")]
        response = self._respond(prompt.question, limit)
        answer = EvaluatedAnswer(
            prompt_id=prompt.prompt_id, category="", correct_strict=False, correct_lenient=False, grade_reason="",
            finish_reason="length" if len(response) > limit else "stop", num_response_tokens=min(len(response), limit),
            response=response[:limit], answer="", rethinks="angle" in prompt.question,
        )  # fmt: skip
        if mode is not EvaluationMode.none and answer.finish_reason == "stop":
            answer = _gone_on(answer, " Wait. \\boxed{A}")
        return [answer], []


def _gone_on(answer: EvaluatedAnswer, more: str) -> EvaluatedAnswer:
    wrong = {f"{part}_correct{how}": False for part in ("first", "final") for how in ("", "_strict", "_lenient")}
    forced = ForcedAnswer(**wrong, y1=answer.response, trigger="", y2=more, extra_tokens=len(more))
    length = answer.num_response_tokens + len(more)
    return dataclasses.replace(answer, response=answer.response + more, num_response_tokens=length, forced=forced)


class Stage:
    """Runs evaluations of fake rollout actors in a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.asked: list[tuple[str, int]] = []
        self.configs: list[Config] = []
        self.respond: Respond = lambda prompt, limit: "It is \\boxed{B}"
        self.deaths: list[int | None] = [None]
        self.successors: list[int | None] = []
        self.model = folder / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        for name in ("mathvision", "mmmu_pro", "megabench"):
            WRITERS[name](folder / "benchmarks" / name)
        stage = self

        class FakeFleet:
            def __init__(self, config, model_path, replay) -> None:
                assert replay is None
                stage.configs.append(config)

            async def start(self, *, version: int) -> None:
                self.replicas = [FakeReplica(n, stage.respond, stage.asked, dies) for n, dies in enumerate(stage.deaths)]

            async def add(self) -> FakeReplica:
                if not stage.successors:
                    raise RuntimeError("no room for another one")
                return FakeReplica(99, stage.respond, stage.asked, stage.successors.pop())

            def enlist(self, replica: FakeReplica) -> None:
                self.replicas.append(replica)

            def lose(self, replica: FakeReplica, reason: str) -> None:
                replica.lost = reason
                self.replicas.remove(replica)

            async def close(self) -> None:
                self.replicas = []

        @contextmanager
        def session(config: Config) -> Iterator[None]:
            yield

        monkeypatch.setattr(evaluate_module, "RolloutFleet", FakeFleet)
        monkeypatch.setattr(evaluate_module, "ray_session", session)

    def config(self, *words: str) -> Config:
        return load_config(
            "default",
            [
                "evaluation.benchmarks=[mathvision]",
                f"evaluation.benchmarks_dir={self.folder}/benchmarks",
                f"data.image_cache={self.folder}/cache",
                "evaluation.token_limits=[16]",
                "rollout.max_concurrent_sequences=2",
                *words,
            ],
        )

    def run(self, *words: str) -> int:
        return evaluate(self.config(*words), self.model, self.folder / "out")

    @property
    def report(self) -> dict:
        return json.loads((self.folder / "out/report.json").read_text())


@pytest.fixture(scope="module")
def graders() -> Iterator[GraderProcesses]:
    """Processes that have loaded math-verify once for all tests; each scoring has its pool, with cache and counts, as ever."""
    processes = GraderProcesses(processes=1, timeout_s=10.0, memory_bytes=2 << 30)
    close, processes.close = processes.close, lambda: None
    yield processes
    close()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graders: GraderProcesses) -> Stage:
    monkeypatch.setattr("tasks.grading.GraderProcesses", lambda **_: graders)
    return Stage(tmp_path, monkeypatch)


def test_answers_scores_and_reports_lie_where_they_are_told_to(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.run() == 0
    out = stage.folder / "out"
    answers = pq.read_table(out / "answers/mathvision/none").to_pylist()
    assert len(answers) == 7 and {row["response"] for row in answers} == {"It is \\boxed{B}"}
    scores = {row["question_id"]: row for row in pq.read_table(out / "scores/mathvision.parquet").to_pylist()}
    assert scores["4"]["strict"] == 1.0 and scores["59"]["strict"] == 0.0
    (result,) = stage.report["benchmarks"][0]["results"]
    assert result["accuracy_lenient"] == pytest.approx(1 / 7) and result["scored"] == 7
    low, high = result["interval_lenient"]
    assert low == 0 and 0.3 < high < 0.6
    assert stage.report["benchmarks"][0]["bad_rows"][0]["reason"].startswith("the gold answer 'Z'")
    assert set(result["breakdowns"]["level"]) == {"1", "5"}
    told = capsys.readouterr().out
    assert "mathvision, 16 tokens: 7/7, 0 s left" in told and "mathvision, none, 16 tokens: lenient 0.143" in told
    page = (out / "report.md").read_text()
    assert re.search(r"\| MATH-Vision test \| none \| 16 \| 14\.3 \[0\.0, \d\d\.\d\] \|", page)
    assert "| VL-Rethinker-7B | 32.3 |" in page and "this model, none, 16 tokens" in page


def test_answers_that_go_on_are_scored_as_forced_and_as_bound(stage: Stage) -> None:
    """Beside those that don't, in one folder: y1 says B, y2 says A, which makes the one right answer wrong."""
    assert stage.run() == 0
    assert stage.run("evaluation.mode=forced") == 0 and len(stage.asked) == 14
    rows = pq.read_table(stage.folder / "out/answers/mathvision/forced").to_pylist()
    assert {(row["first_response"], row["response"]) for row in rows} == {("It is \\boxed{B}", "It is \\boxed{B} Wait. \\boxed{A}")}
    scores = pq.read_table(stage.folder / "out/scores/mathvision.parquet").to_pylist()
    of_question = {row["mode"]: row["lenient"] for row in scores if row["question_id"] == "4"}
    assert of_question == {"none": 1.0, "forced": 0.0, "bound": 1.0}
    assert {result["mode"] for result in stage.report["benchmarks"][0]["results"]} == {"none", "forced", "bound"}
    assert stage.run("evaluation.mode=forced") == 0 and len(stage.asked) == 14  # nothing left to ask


def test_an_evaluation_goes_on_with_the_questions_that_have_no_answer(stage: Stage) -> None:
    stage.deaths = [3]
    assert stage.run() == 1
    first = list(stage.asked)
    assert len(first) == 3
    stage.deaths = [None]
    assert stage.run() == 0
    assert len(stage.asked) == len(set(stage.asked)) == 7
    assert stage.run() == 0 and len(stage.asked) == 7 and len(stage.configs) == 2  # nothing left to ask: no actor is started


def test_a_dead_actor_loses_no_question(stage: Stage) -> None:
    stage.deaths = [2, None, 0]
    assert stage.run("evaluation.benchmarks=[mathvision,mmmu_pro]") == 0
    assert len(stage.asked) == 7 + 4
    assert [found["results"][0]["missing"] for found in stage.report["benchmarks"]] == [0, 0]


def test_dead_actors_are_replaced_and_their_successors_answer_the_next_set_too(stage: Stage) -> None:
    stage.deaths, stage.successors = [2], [None, 3]
    assert stage.run("evaluation.benchmarks=[mathvision,mmmu_pro]") == 0
    assert len(stage.asked) == 7 + 4 and not stage.successors
    assert [found["results"][0]["missing"] for found in stage.report["benchmarks"]] == [0, 0]


def test_actors_that_keep_dying_end_the_command_within_their_budget(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.deaths, stage.successors = [1], [0] * 50
    assert stage.run("supervision.max_restarts=2", "rollout.max_concurrent_sequences=1") == 1
    assert len(stage.successors) >= 48
    assert "no rollout actor is left" in capsys.readouterr().out


def test_only_answers_that_were_cut_off_are_asked_again_with_more_room(stage: Stage) -> None:
    stage.respond = lambda prompt, limit: "x" * 30 + "\\boxed{B}" if "angle" in prompt else "\\boxed{B}"
    assert stage.run("evaluation.token_limits=[16,64]") == 0
    again = [name for name, limit in stage.asked if limit == 64]
    assert again == ["mathvision/2955"]
    small, large = stage.report["benchmarks"][0]["results"]
    assert (small["token_limit"], large["token_limit"]) == (16, 64)
    assert small["truncated_fraction"] == pytest.approx(1 / 7) and large["truncated_fraction"] == 0
    assert small["answers"] == large["answers"] == 7


def test_scoring_is_repeated_without_model_and_data(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.respond = lambda prompt, limit: "No idea"
    assert stage.run("evaluation.benchmarks=[mathvision,mmmu_pro,megabench]") == 0
    before = stage.report
    import shutil

    shutil.rmtree(stage.folder / "benchmarks")
    shutil.rmtree(stage.model)
    assert rescore(stage.config(), stage.folder / "out") == 0
    assert stage.report == before
    assert rescore(stage.config("evaluation.official_guess=true"), stage.folder / "out") == 0
    by_name = {found["benchmark"]: found["results"][0] for found in stage.report["benchmarks"]}
    assert by_name["mmmu_pro"]["accuracy_lenient"] == 0 < by_name["mmmu_pro"]["accuracy_official"]
    assert "accuracy_official" not in by_name["mathvision"]  # its rule guesses nothing
    assert "official" in (stage.folder / "out/report.md").read_text()


def test_what_no_rule_can_judge_is_named_and_not_zero(stage: Stage) -> None:
    stage.respond = lambda prompt, limit: "Answer: 3"
    assert stage.run("evaluation.benchmarks=[megabench]") == 0
    found = stage.report["benchmarks"][0]
    (result,) = found["results"]
    assert result["not_scored"] == {"metric constrained_generation has no rule": 1}
    assert result["strata_not_scored"] == ["poem"] and result["strata_scored"] == 2
    assert result["accuracy_strict"] == pytest.approx((0.5 + 0.0) / 2)  # the mean over tasks: count 1 of 2, describe 0 of 1
    assert len(found["bad_rows"]) == 3
    page = (stage.folder / "out/report.md").read_text()
    assert "1 not scored: metric constrained_generation has no rule" in page and "asks about a video" in page


def test_a_question_that_cannot_be_asked_is_named_and_not_scored(stage: Stage) -> None:
    words = ["evaluation.prompt=suffix", "data.prompt_suffix= refuse"]
    assert stage.run(*words) == 0
    (result,) = stage.report["benchmarks"][0]["results"]
    assert result["not_scored"] == {"not answered: prompt too long": 7} and result["scored"] == 0
    assert "| - | - |" in (stage.folder / "out/report.md").read_text()


def test_the_mean_of_two_settings_and_intervals_within_them(stage: Stage) -> None:
    stage.respond = lambda prompt, limit: "Answer: J"
    assert stage.run("evaluation.benchmarks=[mmmu_pro]") == 0
    (result,) = stage.report["benchmarks"][0]["results"]
    assert result["accuracy_lenient"] == pytest.approx(0.5)  # standard: J of two questions, vision: J of two
    assert set(result["breakdowns"]["setting"]) == {"standard (10 options)", "vision"}


def test_a_choice_of_questions_is_the_same_for_a_seed(stage: Stage) -> None:
    words = ["evaluation.questions_per_benchmark=3"]
    assert stage.run(*words) == 0
    first = sorted(stage.asked)
    assert len(first) == 3
    assert stage.run(*words, "evaluation.seed=0") == 0 and sorted(stage.asked) == first
    assert stage.run() == 0 and len(stage.asked) == 7  # the others are added


def test_another_model_or_another_prompt_is_refused(stage: Stage) -> None:
    assert stage.run() == 0
    with pytest.raises(RunFolderError, match="prompt = 'own', this evaluation has prompt = 'suffix'"):
        stage.run("evaluation.prompt=suffix")
    (stage.model / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(RunFolderError, match="model_digest"):
        stage.run()


def test_an_unknown_benchmark_is_named_before_anything_is_read(stage: Stage) -> None:
    with pytest.raises(ConfigError, match=r"no benchmark 'mmlu', expected some of mathvista, mathverse"):
        stage.run("evaluation.benchmarks=[mathvision,mmlu]")


def test_the_engines_have_room_for_the_longest_answer(stage: Stage) -> None:
    settings = engine_settings(stage.config("evaluation.token_limits=[8192,64]", "model.max_prompt_tokens=4096"))
    assert settings.model.max_response_tokens == 8192 and settings.rollout.max_batched_tokens == 4096 + 8192 + 1
    assert settings.learner.num_ranks == 0 and settings.data.prompt_suffix == ""


def test_weights_that_differ_anywhere_sampled_make_another_model(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(2_000_000))
    before = model_digest(tmp_path)
    assert model_digest(tmp_path) == before
    changed = bytearray(2_000_000)
    changed[1_000_100] = 1
    weights.write_bytes(changed)
    assert model_digest(tmp_path) != before


def test_one_forced_answer_tells_what_all_three_modes_come_to(stage: Stage) -> None:
    """y1 says B, y2 always A: question 4 is lost by going on, 5 is won, and the better of both has both."""
    assert stage.run("evaluation.mode=forced", "evaluation.token_limits=[64]") == 0
    assert len(stage.asked) == 7
    none, forced, bound = stage.report["benchmarks"][0]["results"]
    assert [result["mode"] for result in (none, forced, bound)] == ["none", "forced", "bound"]
    assert [round(7 * result["accuracy_lenient"]) for result in (none, forced, bound)] == [1, 1, 2]
    assert forced["went_on"] == 7 and forced["y1_to_y2"] == {"wrong_to_wrong": 5, "right_to_wrong": 1, "wrong_to_right": 1}
    assert forced["extra_tokens_mean"] == 16 and none["response_tokens_mean"] == forced["response_tokens_mean"] - 16
    assert none["rethinking_fraction"] == pytest.approx(1 / 7)
    page = (stage.folder / "out/report.md").read_text()
    assert "forced, 64 tokens: 7 went on, with 16 more tokens: right to wrong 1, wrong to right 1, wrong to wrong 5" in page
    assert stage.run("evaluation.mode=bound", "evaluation.token_limits=[64]") == 0 and len(stage.asked) == 7  # the same answers


def test_a_y1_that_was_cut_off_does_not_go_on_and_counts_in_every_mode(stage: Stage) -> None:
    stage.respond = lambda prompt, limit: "\\boxed{B}" + "x" * 100
    assert stage.run("evaluation.mode=forced") == 0
    for result in stage.report["benchmarks"][0]["results"]:
        assert result["truncated_fraction"] == 1 and result["accuracy_lenient"] == pytest.approx(1 / 7) and "went_on" not in result
