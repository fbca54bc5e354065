"""Each adapter against a folder in its benchmark's published layout, with the oddities that the published rows have."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from algorithms.types import AnswerType
from tasks.benchmarks import BENCHMARKS
from tasks.benchmarks.questions import AnswerForm, Question
from tasks.benchmarks.reading import BATCH_ROWS, read_questions, with_pictures
from tasks.errors import DataError
from tests.benchmark_fixtures import WRITERS


def read(name: str, folder: Path) -> tuple[dict[str, Question], dict[str, str]]:
    found = read_questions(BENCHMARKS[name], WRITERS[name](folder))
    return {located.question.question_id: located.question for located in found.questions}, dict(found.bad)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_question_has_as_many_markers_as_pictures_and_survives_json(name: str, tmp_path: Path) -> None:
    questions, bad = read(name, tmp_path)
    assert questions and all(reason for reason in bad.values())
    for question in questions.values():
        assert Question.from_json(question.to_json()) == question
        for prompt in (question.prompt(None), question.prompt("\n\nBox it.")):
            assert prompt.count("<image>") == len(question.images)
        assert question.prompt("\n\nBox it.").endswith("Box it.")
        assert set(BENCHMARKS[name].breakdowns) <= set(question.groups)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_pictures_are_the_row_s_own_and_only_those_that_are_asked_for(name: str, tmp_path: Path) -> None:
    folder = WRITERS[name](tmp_path / "data")
    located = read_questions(BENCHMARKS[name], folder).questions
    wanted = located[::2]
    cache = tmp_path / "cache"
    found = list(with_pictures(BENCHMARKS[name], folder, wanted, cache))
    assert [item for item, _ in found] == list(wanted)
    for item, paths in found:
        assert len(paths) == len(item.question.images)
        if BENCHMARKS[name].media_folder:
            assert all(Path(path).is_file() for path in paths)
            continue
        row = pq.read_table(folder / item.file).slice(item.row, 1).to_pylist()[0]
        assert [Path(path).read_bytes() for path in paths] == [row[column]["bytes"] for column in item.question.images]
    used = {path for _, paths in found for path in paths}
    assert BENCHMARKS[name].media_folder or {str(path) for path in cache.rglob("*.png")} == used


def test_mathvista(tmp_path: Path) -> None:
    questions, bad = read("mathvista", tmp_path)
    assert list(questions) == ["1", "2", "3", "4", "5", "7"] and "green" in next(iter(bad.values()))
    assert questions["1"].answer_type == AnswerType(kind="choice", options=("red", "blue")) and questions["1"].gold == ("B",)
    assert questions["7"].gold == ("C",)  # the options are letters themselves; the third one is right
    assert questions["3"].answer_type == AnswerType(kind="number", decimals=2)
    assert "(Unit: years)" in questions["2"].body and questions["2"].own_prompt.startswith("<image>Hint: integer.")
    assert questions["1"].groups["skills"] == ("algebraic reasoning", "statistical reasoning")


def test_mathverse(tmp_path: Path) -> None:
    questions, bad = read("mathverse", tmp_path)
    assert len(questions) == 12 and not bad  # the text-only file is not part of it
    assert questions["1"].own_prompt == "<image>Reason first.\nQuestion: What is the angle?\nChoices:\nA:40°\nB:50°\nC:60°\nD:70°"
    only = questions["5"]
    assert only.answer_type.options == ("40°", "50°", "60°", "70°") and "40°" not in only.own_prompt
    assert "shown in the image, please first conduct reasoning" in only.own_prompt
    assert questions["9"].answer_type == AnswerType(kind="choice") and questions["9"].gold == ("F",)
    assert questions["12"].gold == ("C",)
    assert "several letters" in questions["10"].unscorable


def test_mathvision(tmp_path: Path) -> None:
    questions, bad = read("mathvision", tmp_path)
    assert "Z" in bad["data/test-00000-of-00001-3532b8d3f1b4047a.parquet, row 7"]
    assert questions["4"].body == "<image>Which one?\n\n(A) 3\n(B) 4\n(C) 5\n(D) 6\n(E) 7"
    assert questions["59"].gold == ("C",) and "(A)" not in questions["59"].body
    assert questions["5"].body == "<image>Which of [image 1] and [image 2]?"
    assert questions["2653"].answer_type.options == ("",) * 5 and "(D) [image 4]" in questions["2653"].body
    assert questions["2828"].gold == ("7",) and questions["2830"].gold == ("\\frac{36}{13}",)
    assert questions["4"].own_prompt.startswith("<image>Please solve the problem step by step") and questions["4"].form is AnswerForm.boxed
    assert questions["4"].groups["subject and level"] == ("algebra, level 1",)


def test_mmmu(tmp_path: Path) -> None:
    questions, bad = read("mmmu", tmp_path)
    assert len(questions) == 5 and "no Python literal" in next(iter(bad.values()))
    first = questions["validation_Art_1"]
    assert first.images == ("image_2", "image_1") and first.body == "Look at <image> first, then <image>.\n(A) yes\n(B) no"
    assert first.own_prompt.endswith("\n\nAnswer with the option's letter from the given choices directly.")
    assert questions["validation_Art_2"].images == ("image_1", "image_2", "image_3")
    assert questions["validation_Art_2"].answer_type.options == ("", "")
    assert questions["validation_Math_2"].gold == ("24/7", "3.429") and questions["validation_Math_2"].images == ()
    assert questions["validation_Math_1"].groups["domain"] == ("Science",)


def test_mmmu_pro(tmp_path: Path) -> None:
    questions, bad = read("mmmu_pro", tmp_path)
    assert list(bad) == ["standard (10 options)/test-00000-of-00002.parquet, row 2"]
    standard, vision = questions["standard (10 options)/test_Art_Theory_1"], questions["vision/test_Art_Theory_1"]
    assert standard.gold == vision.gold == ("J",) and standard.stratum != vision.stratum
    assert "J. option 9" in standard.own_prompt and standard.own_prompt.endswith("Think step by step before answering.")
    assert vision.own_prompt.startswith("<image>Write out the multiple-choice question") and vision.images == ("image",)
    assert questions["standard (10 options)/validation_Accounting_29"].answer_type.options == ("7", "8", "9")
    assert standard.groups["domain"] == ("Art and Design",)


def test_emma(tmp_path: Path) -> None:
    questions, bad = read("emma", tmp_path)
    assert not bad and len(questions) == 5
    chemistry = questions["chem_146"]
    assert chemistry.body.startswith("<image>Which bond?") and "None" not in chemistry.body  # its picture has no marker
    assert chemistry.own_prompt.endswith("Please solve the problem step by step.") and "\nB: two\n\nAnswer" in chemistry.own_prompt
    assert questions["chem_1173"].gold == ("A", "B2")
    assert questions["coding_1"].answer_type.options == ("", "", "") and len(questions["coding_1"].images) == 4
    assert questions["coding_1"].groups["category"] == ("Coding: Line", "Coding: Bar")
    assert questions["math_1"].body == "<image> How many?"  # a leftover marker of a merged picture
    assert questions["phy_1"].gold == ("B",) and questions["phy_1"].body.startswith("<image>A lens.\nWhere is it?")


def test_megabench(tmp_path: Path) -> None:
    questions, bad = read("megabench", tmp_path)
    assert list(questions) == ["1", "2", "3", "4"]
    assert [reason.split(";")[0] for reason in bad.values()] == [
        "asks about a video",
        "picture path leaves the folder: '../../etc/passwd'",
        "query_text has 0 <image> markers for 1 pictures",
    ]
    assert questions["1"].images == ("data/count/1.png", "data/count/2.png") and questions["1"].stratum == "count"
    assert questions["4"].unscorable == "metric constrained_generation has no rule" and not questions["3"].unscorable


def test_a_question_that_spells_a_marker_is_not_taken_for_a_picture(tmp_path: Path) -> None:
    from tasks.benchmarks.mathvista import question

    row = {"pid": "1", "question": "Is <image> a tag?", "choices": None, "unit": None, "answer": "3", "question_type": "free_form"}
    row |= {"answer_type": "integer", "precision": None, "metadata": None, "query": "Is <image> a tag?", "decoded_image": True}
    assert question(row, "").own_prompt.count("<image>") == 1


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    benchmark = BENCHMARKS[name]
    with pytest.raises(DataError, match="no such folder"):
        read_questions(benchmark, tmp_path / "nowhere")
    folder = WRITERS[name](tmp_path / "data")
    file = next(path for path in sorted(folder.rglob("*.parquet")) if path.match(benchmark.files[0].split("/")[-1]))
    table = pq.read_table(file)
    pq.write_table(table.drop_columns([benchmark.columns[0]]), file)
    with pytest.raises(DataError, match=f"missing columns {benchmark.columns[0]}"):
        read_questions(benchmark, folder)
    file.write_bytes(b"PAR1 damaged PAR1")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_questions(benchmark, folder)
    for path in folder.glob(benchmark.files[0]):
        path.unlink()
    with pytest.raises(DataError, match=f"no file .*is a copy of the data set {benchmark.repository}"):
        read_questions(benchmark, folder)


def test_two_rows_of_one_id_and_a_picture_that_is_missing_are_bad_rows(tmp_path: Path) -> None:
    folder = WRITERS["mathvision"](tmp_path)
    file = next(folder.glob("data/test-*.parquet"))
    rows = pq.read_table(file).to_pylist()
    rows[1]["id"] = rows[0]["id"]
    rows[2]["decoded_image"] = None
    from tests.benchmark_fixtures import MATHVISION, write

    write(file, MATHVISION, rows)
    reasons = [reason for _, reason in read_questions(BENCHMARKS["mathvision"], folder).bad]
    assert reasons[:2] == ["another row has the id 4", "there is no picture in decoded_image"]


def test_rows_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = WRITERS["mathvision"](tmp_path)
    file = next(folder.glob("data/test-*.parquet"))
    from tests.benchmark_fixtures import MATHVISION, write

    row = pq.read_table(file).to_pylist()[0]
    write(file, MATHVISION, [row | {"id": str(number)} for number in range(10 * BATCH_ROWS)])
    read: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(self, **settings):
        for batch in iter_batches(self, **settings):
            read.append(batch.num_rows)
            yield batch

    located = read_questions(BENCHMARKS["mathvision"], folder).questions
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    pictures = with_pictures(BENCHMARKS["mathvision"], folder, located, tmp_path / "cache")
    next(pictures)
    assert sum(read) <= BATCH_ROWS
    assert sum(1 for _ in pictures) == 10 * BATCH_ROWS - 1
