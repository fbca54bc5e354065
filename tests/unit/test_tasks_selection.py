"""What selections and the shipped recipes keep of a data set with ViRL39K's columns and oddities."""

import dataclasses

import pyarrow.parquet as pq
import pytest

from conf.checks import check
from conf.loading import ConfigError, load_config
from conf.schema import DataConfig, ImageSelection
from tasks.dataset import PromptDataset
from tasks.errors import DataError
from tests.data_fixtures import CHARTS, GEOMETRY, VIRL39K_SCHEMA, picture, virl39k_rows, write_virl39k

ALL = {int(row["qid"].split("-")[1]) for row in virl39k_rows()}
EASY = {2, 3}  # the 32B model solves them every time
TEXT_ONLY = {7, 8}
SCIENCE = {9, 10, 11}
BAD = {17}


@pytest.fixture
def folder(tmp_path):
    return write_virl39k(tmp_path)


def kept(data: PromptDataset) -> set[int]:
    return {int(prompt.prompt_id.split("-")[1]) for prompt in data}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("virl39k_16k", ALL - BAD - EASY),
        ("virl39k_13k", ALL - BAD - EASY - TEXT_ONLY),
        ("virl39k_11k", ALL - BAD - EASY - TEXT_ONLY - SCIENCE),
    ],
)
def test_the_paper_s_recipes(folder, recipe, expected):
    config = load_config(recipe, [f"data.path={folder}"])
    check(config, paths=False)
    data = PromptDataset(config.data.path, config.data)
    assert kept(data) == expected
    assert [row.row_id for row in data.bad_rows] == ["MMK12-17-unbalanced"]
    assert {4, 16} <= kept(data)  # a rate of 0 and a missing one are both not easy
    assert data.num_selected == len(expected) + 1


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"pass_rate_column": "PassRate_7BBase", "max_pass_rate": 0.5}, ALL - BAD - {2}),
        ({"pass_rate_column": "PassRate_7BBase", "max_pass_rate": 0.5, "keep_unrated": False}, {3}),
        ({"pass_rate_column": "PassRate_7BBase", "max_pass_rate": 0.0, "keep_unrated": False}, set()),
        ({"pass_rate_column": "PassRate_32BTrained", "max_pass_rate": 0.0, "keep_unrated": False}, {4}),
        ({"pass_rate_column": "PassRate_32BTrained", "min_pass_rate": 0.6, "max_pass_rate": 0.8, "keep_unrated": False}, {5, 10}),
        ({"sources": ["DeepScaleR"]}, TEXT_ONLY),
        ({"exclude_sources": ["MMK12", "M3CoT", "DeepScaleR"]}, {5, 6}),
        ({"categories": [GEOMETRY], "images": ImageSelection.only}, {1, 4, 6, 15, 16}),
        ({"images": ImageSelection.none}, TEXT_ONLY),
        ({"max_question_chars": 16, "exclude_categories": [CHARTS]}, {4, 8}),
        ({"deduplicate": True}, ALL - BAD - {15}),
    ],
)
def test_selections(folder, selection, expected):
    if not expected:
        with pytest.raises(DataError, match="17 rows, 0 kept by the selection"):
            PromptDataset(folder, DataConfig(**selection))
        return
    data = PromptDataset(folder, DataConfig(**selection))
    assert kept(data) == expected
    assert data.num_duplicates == int(selection.get("deduplicate", False))
    assert data.row_numbers == sorted(data.row_numbers)
    rows = virl39k_rows()
    assert [rows[number]["qid"] for number in data.row_numbers] == [prompt.prompt_id for prompt in data]


def test_one_question_about_other_pictures_is_no_duplicate(tmp_path):
    rows = [dict(virl39k_rows()[0], qid=qid, image=[f"images/{image}.png"]) for qid, image in [("q-1", "a"), ("q-2", "b"), ("q-3", "copy")]]
    write_virl39k(tmp_path, rows)
    (tmp_path / "images" / "copy.png").write_bytes(picture(mark=0))
    data = PromptDataset(tmp_path, DataConfig(deduplicate=True))
    assert kept(data) == {1, 2}  # the third has the first one's picture under another name


def test_a_pass_rate_column_that_is_not_there_is_an_error(folder):
    with pytest.raises(DataError, match=r"data\.pass_rate_column = 'pass_rate': .* has question, answer, PassRate_32BTrained"):
        PromptDataset(folder, DataConfig(pass_rate_column="pass_rate", max_pass_rate=0.5))


def test_what_makes_training_efficient_does_not_apply_to_held_out_questions(folder):
    data = load_config("virl39k_11k", [f"data.test_path={folder}"]).data
    assert kept(PromptDataset.held_out(dataclasses.replace(data, deduplicate=True))) == ALL - BAD - TEXT_ONLY - SCIENCE
    pq.write_table(
        pq.read_table(folder / "39Krelease.parquet").drop_columns(["PassRate_32BTrained", "PassRate_7BBase"]), folder / "39Krelease.parquet"
    )
    assert len(PromptDataset.held_out(data)) == len(ALL - BAD - TEXT_ONLY - SCIENCE)
    assert len(VIRL39K_SCHEMA.names) == 8


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["data.max_pass_rate=0.5"], ["data.max_pass_rate = 0.5", "data.pass_rate_column = ''"]),
        (["data.pass_rate_column=p", "data.max_pass_rate=1.5"], ["data.max_pass_rate = 1.5", "0 to 1"]),
        (
            ["data.pass_rate_column=p", "data.max_pass_rate=0.2", "data.min_pass_rate=0.4"],
            ["data.min_pass_rate = 0.4", "data.max_pass_rate = 0.2"],
        ),
        (["data.sources=[a]", "data.exclude_sources=[a, b]"], ["data.sources = ['a']", "both name a"]),
        (["data.category_weights={a: 0}"], ["data.category_weights", "'a'", "more than 0"]),
        (["data.category_weights={a: 1}", "data.categories=[b]"], ["data.category_weights names a", "data.categories = ['b']"]),
        (["data.category_weights={a: 1}", "data.exclude_categories=[a]"], ["data.category_weights", "data.exclude_categories = ['a']"]),
        (["data.reader=rows"], ["data.reader = 'rows'", "my_task.rows"]),
        (["data.reader=a.rows", "data.format=verl"], ["data.reader = 'a.rows'", "data.format = verl"]),
        (["data.max_question_chars=0"], ["data.max_question_chars = 0", "at least 1"]),
    ],
)
def test_selections_that_cannot_be_meant(words, named):
    with pytest.raises(ConfigError) as refusal:
        check(load_config("default", ["model.path=m", "data.path=d", *words]), paths=False)
    assert all(part in str(refusal.value) for part in named), refusal.value


def test_generated_data_with_a_reader_is_refused():
    with pytest.raises(ConfigError, match=r"data\.generate = 'quickstart' .* data\.reader = 'a\.b'"):
        check(load_config("quickstart", ["data.reader=a.b"]), paths=False)


def test_weights_of_a_file_and_of_the_command_line(tmp_path):
    written = tmp_path / "a.yaml"
    written.write_text("data:\n  category_weights:\n    (GradeSchool) Geometric: 2\n    Spatial Reasoning: 1\n")
    assert load_config(str(written)).data.category_weights == {"(GradeSchool) Geometric": 2.0, "Spatial Reasoning": 1.0}
    assert load_config("default", ["data.category_weights={a: 1, b: 2.5}"]).data.category_weights == {"a": 1.0, "b": 2.5}
    with pytest.raises(ConfigError, match=r"data\.category_weights = 3 is wrong, expected numbers by name"):
        load_config("default", ["data.category_weights=3"])
