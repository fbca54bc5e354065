import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conf.schema import DataConfig, ImageSelection
from tasks.dataset import BadRow, PromptDataset, PromptOrder
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
        (row("x", image=(None,)), "image isn't a list of paths"),
        (row("good"), "another row has the same qid"),
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


def test_columns_of_another_type_make_bad_rows(tmp_path):
    schema = SCHEMA.set(1, pa.field("answer", pa.int64())).set(4, pa.field("qid", pa.int64()))
    with pytest.raises(DataError, match=r"no usable prompt: 1 rows, 1 kept .* 7: answer isn't text but int"):
        PromptDataset(write(tmp_path, [row(7, answer=3)], schema))


def test_errors_name_the_path_and_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such data folder"):
        PromptDataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"expected one \*\.parquet file with the columns question, .* found none"):
        PromptDataset(tmp_path)
    (tmp_path / "data.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"data\.parquet: not a readable Parquet file"):
        PromptDataset(tmp_path)
    pq.write_table(pa.table({"question": ["a"], "image": [[]]}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"data\.parquet: missing columns answer, category, source, qid; found question, image"):
        PromptDataset(tmp_path)
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


def test_order_visits_every_prompt_once_per_epoch():
    order = PromptOrder(50, seed=3)
    epochs = [[order.next() for _ in range(50)] for _ in range(3)]
    for number, epoch in enumerate(epochs):
        assert sorted(index for index, _ in epoch) == list(range(50))
        assert {visit for _, visit in epoch} == {number}
    assert epochs[0] != epochs[1]


def test_order_depends_on_the_seed_only():
    def first(seed):
        order = PromptOrder(50, seed=seed)
        return [order.next() for _ in range(50)]

    assert first(1) == first(1)
    assert first(1) != first(2)


@pytest.mark.parametrize("taken", [0, 1, 49, 50, 51, 120])
def test_order_resumes_where_it_was(taken):
    order = PromptOrder(50, seed=3)
    for _ in range(taken):
        order.next()
    state = order.state()
    expected = [order.next() for _ in range(120)]
    resumed = PromptOrder(50, seed=3)
    resumed.restore(state)
    assert [resumed.next() for _ in range(120)] == expected


def test_order_refuses_a_state_of_other_data():
    state = PromptOrder(50, seed=3).state()
    with pytest.raises(ValueError, match="num_prompts=51, the saved one num_prompts=50"):
        PromptOrder(51, seed=3).restore(state)
    with pytest.raises(ValueError, match="seed=4, the saved one seed=3"):
        PromptOrder(50, seed=4).restore(state)
    with pytest.raises(ValueError, match="position=51"):
        PromptOrder(50, seed=3).restore({**state, "position": 51})
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptOrder(0, seed=1)
