"""What an evaluation writes can be gone on with and read again, and nothing of another one gets mixed in."""

import dataclasses
from pathlib import Path

import pytest

from cluster.evaluation_folder import AnswerRow, EvaluationFolder
from cluster.run_folder import RunFolderError
from tasks.benchmarks.questions import AnswerForm, Question

QUESTION = Question(question_id="q1", body="?", own_prompt="?", gold=("3",), form=AnswerForm.any, groups={"subject": ("x",)})
ROW = AnswerRow(question_id="q1", token_limit=64, response="\\boxed{3}", num_tokens=5, finish_reason="stop")


def test_the_same_settings_go_on_and_others_are_refused(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "e")
    folder.open({"model_digest": "abc"}, model="here")
    folder.open({"model_digest": "abc"}, model="moved")
    assert folder.read_settings()["model"] == "here"
    with pytest.raises(RunFolderError, match=r"model_digest = 'abc', this evaluation has model_digest = 'def'; choose another folder"):
        folder.open({"model_digest": "def"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").touch()
    with pytest.raises(RunFolderError, match="isn't empty and holds no evaluation"):
        EvaluationFolder(tmp_path / "other").open({})


def test_answers_come_back_each_once_whatever_the_parts(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "e")
    folder.open({})
    longer = dataclasses.replace(ROW, token_limit=128, first_response="y1", passed_over="x")
    folder.add_answers("mmmu", "none", [ROW])
    folder.add_answers("mmmu", "none", [ROW, longer])
    folder.add_answers("mmmu", "none", [])
    assert list(folder.answers("mmmu", "none")) == [ROW, longer]
    assert folder.modes("mmmu") == ["none"] and folder.modes("emma") == [] and list(folder.answers("emma", "none")) == []


def test_what_a_killed_process_was_writing_is_no_answer(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "e")
    folder.open({})
    folder.add_answers("mmmu", "none", [ROW])
    (tmp_path / "e/answers/mmmu/none/.part-00001.parquet.123").write_bytes(b"PAR1 half")
    assert list(folder.answers("mmmu", "none")) == [ROW]
    folder.add_answers("mmmu", "none", [dataclasses.replace(ROW, question_id="q2")])
    assert len(list(folder.answers("mmmu", "none"))) == 2


def test_questions_may_be_added_but_not_changed(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "e")
    folder.open({})
    second = dataclasses.replace(QUESTION, question_id="q2")
    folder.keep_questions("mmmu", [(QUESTION, "?")], [("file, row 3", "no picture")])
    folder.keep_questions("mmmu", [(second, "?")], [("file, row 3", "no picture")])
    assert folder.questions("mmmu") == ({"q2": second, "q1": QUESTION}, [("file, row 3", "no picture")])
    assert folder.benchmarks() == ["mmmu"]
    for changed in ((QUESTION, "another prompt"), (dataclasses.replace(QUESTION, gold=("4",)), "?")):
        with pytest.raises(RunFolderError, match="the question q1 with another prompt or gold answer"):
            folder.keep_questions("mmmu", [changed], [])


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "e")
    with pytest.raises(RunFolderError, match="holds no evaluation"):
        folder.read_settings()
    folder.open({})
    folder.add_answers("mmmu", "none", [ROW])
    part = tmp_path / "e/answers/mmmu/none/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(RunFolderError, match=r"part-00000\.parquet can't be read"):
        list(folder.answers("mmmu", "none"))
    folder.settings.write_text("{")
    with pytest.raises(RunFolderError, match="is damaged"):
        folder.read_settings()
    folder.settings.write_text('{"format": 99}')
    with pytest.raises(RunFolderError, match="another version of rethinker"):
        folder.read_settings()


@pytest.mark.parametrize(
    ("changes", "final"),
    [({}, True), ({"finish_reason": "length"}, False), ({"problem": "too long"}, False), ({"passed_over": "no_room"}, False)],
)
def test_which_answers_a_higher_limit_would_not_change(changes: dict, final: bool) -> None:
    assert dataclasses.replace(ROW, **changes).is_final is final
