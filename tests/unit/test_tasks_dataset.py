import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conf.schema import DataConfig, DataFormat, ImageSelection
from tasks.dataset import BadRow, PromptDataset
from tasks.errors import DataError

COLUMNS = {"question": pa.string(), "answer": pa.string(), "category": pa.string(), "source": pa.string(), "qid": pa.string()}
SCHEMA = pa.schema(
    [
        *COLUMNS.items(),
        ("image", pa.list_(pa.string())),
        ("PassRate_32BTrained", pa.float64()),
        ("PassRate_7BBase", pa.float64()),
    ]
)


def row(qid, *, answer="\\boxed{4}", image=("images/a.png",), category="math", source="one", question="How many?"):
    image = None if image is None else list(image)
    return {"qid": qid, "question": question, "answer": answer, "category": category, "source": source, "image": image}


def write(folder: Path, rows, schema=SCHEMA) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "images" / "a.png")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "data.parquet")
    return folder


def test_a_row_becomes_a_prompt_with_absolute_image_paths_and_a_bare_answer(tmp_path):
    data = PromptDataset(write(tmp_path, [row("q1", answer="\\boxed{\\frac{1}{2}}"), row("q2", image=None)]))
    assert len(data) == 2
    assert data[0].answer == "\\frac{1}{2}"
    assert data[0].image_paths == (str(tmp_path / "images" / "a.png"),)
    assert data[0].prompt_id == "q1"
    assert data[1].image_paths == ()
    assert data.bad_rows == []
    assert [prompt.prompt_id for prompt in data] == ["q1", "q2"]


def test_image_paths_are_absolute_when_the_folder_is_relative(tmp_path, monkeypatch):
    write(tmp_path, [row("q1")])
    monkeypatch.chdir(tmp_path.parent)
    assert PromptDataset(tmp_path.name)[0].image_paths == (str(tmp_path / "images" / "a.png"),)


@pytest.mark.parametrize(
    ("selection", "kept"),
    [
        ({}, "abcd"),
        ({"categories": ["math"]}, "ac"),
        ({"exclude_categories": ["math"]}, "bd"),
        ({"sources": ["two"]}, "cd"),
        ({"images": ImageSelection.only}, "ab"),
        ({"images": ImageSelection.none}, "cd"),
        ({"categories": ["math"], "images": ImageSelection.none}, "c"),
    ],
)
def test_selection(tmp_path, selection, kept):
    rows = [
        row("a"),
        row("b", category="science"),
        row("c", source="two", image=()),
        row("d", category="science", source="two", image=None),
    ]
    data = PromptDataset(write(tmp_path, rows), DataConfig(**selection))
    assert "".join(prompt.prompt_id for prompt in data) == kept
    assert data.num_selected == len(kept)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(None), "missing qid"),
        (row("x", answer=None), "missing answer"),
        (row("x", question=" "), "missing question"),
        (row("x", answer="\\boxed{{1}"), "unbalanced braces in the boxed answer"),
        (row("x", answer="\\boxed{1}}"), "unbalanced braces in the boxed answer"),
        (row("x", answer="\\boxed{}"), "nothing in the boxed answer"),
        (row("x", image=("../secret.png",)), "image path leaves the data folder: '../secret.png'"),
        (row("x", image=("images/../../secret.png",)), "image path leaves the data folder: 'images/../../secret.png'"),
        (row("x", image=("/etc/hostname",)), "image path leaves the data folder: '/etc/hostname'"),
        (row("x", image=("images/none.png",)), "image file is missing: 'images/none.png'"),
        (row("x", image=("images",)), "image file is missing: 'images'"),
        (row("x", image=("images/\0.png",)), "image file is missing: 'images/\\x00.png'"),
        (row("x", image=(None,)), "image isn't a list of paths or pictures"),
        (row("good"), "another row has the same id"),
    ],
)
def test_a_bad_row_is_kept_apart_with_its_reason(tmp_path, bad, reason):
    data = PromptDataset(write(tmp_path, [row("good"), bad]))
    assert [prompt.prompt_id for prompt in data] == ["good"]
    assert data.bad_rows == [BadRow(row_id=bad["qid"] or "row 1", reason=reason)]
    assert data.num_selected == 2


def test_bad_rows_outside_the_selection_do_not_count(tmp_path):
    rows = [row("a"), row("b", category="science", answer="\\boxed{")]
    assert PromptDataset(write(tmp_path, rows), DataConfig(categories=["math"])).bad_rows == []


def test_text_that_is_not_utf8_costs_only_its_row(tmp_path):
    write(tmp_path, [row("a"), row("b")])
    table = pq.read_table(tmp_path / "data.parquet")
    binary = pa.array([b"How many?", b"\xff\xfe"], type=pa.binary()).view(pa.string())
    pq.write_table(table.set_column(0, "question", binary), tmp_path / "data.parquet")
    data = PromptDataset(tmp_path)
    assert [prompt.prompt_id for prompt in data] == ["a"]
    assert data.bad_rows == [BadRow(row_id="b", reason="unreadable question")]


def test_numbers_are_taken_for_text_and_other_types_make_bad_rows(tmp_path):
    schema = SCHEMA.set(1, pa.field("answer", pa.int64())).set(4, pa.field("qid", pa.int64()))
    assert PromptDataset(write(tmp_path, [row(7, answer=3)], schema))[0].answer == "3"
    schema = SCHEMA.set(1, pa.field("answer", pa.list_(pa.int64()))).set(4, pa.field("qid", pa.int64()))
    with pytest.raises(DataError, match=r"no usable prompt: 1 rows, 1 kept .* 7: answer isn't text but list"):
        PromptDataset(write(tmp_path, [row(7, answer=[3])], schema))


def test_errors_name_the_path_and_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such data folder"):
        PromptDataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"found none of the data files \*\.parquet, \*\.jsonl"):
        PromptDataset(tmp_path)
    (tmp_path / "data.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"data\.parquet: not a readable parquet file"):
        PromptDataset(tmp_path)
    pq.write_table(pa.table({"question": ["a"], "image": [[]]}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"in no known layout.* virl39k question, answer, .* verl prompt, .* found question, image"):
        PromptDataset(tmp_path)
    with pytest.raises(DataError, match=r"missing columns answer, category, source, qid of the format virl39k; found question, image"):
        PromptDataset(tmp_path, DataConfig(format=DataFormat.virl39k))
    pq.write_table(pa.table({"question": ["a"]}), tmp_path / "more.parquet")
    with pytest.raises(DataError, match=r"found data\.parquet, more\.parquet"):
        PromptDataset(tmp_path)


def test_a_selection_that_keeps_nothing_is_an_error(tmp_path):
    with pytest.raises(DataError, match="1 rows, 0 kept by the selection"):
        PromptDataset(write(tmp_path, [row("a")]), DataConfig(categories=["none"]))


def test_any_damage_of_the_file_gives_a_data_set_or_a_data_error(tmp_path):
    rng = random.Random(0)
    write(tmp_path, [row(str(number), question=f"How many? {number}") for number in range(50)])
    whole = (tmp_path / "data.parquet").read_bytes()
    errors = []
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 30)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "data.parquet").write_bytes(data)
        try:
            PromptDataset(tmp_path)
        except DataError as error:
            errors.append(str(error))
    assert len(errors) > 50
    assert all("data.parquet" in error for error in errors)
