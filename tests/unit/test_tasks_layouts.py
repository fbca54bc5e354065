"""Every layout that users have, found by looking or named, and what is wrong with rows and files of each."""

import base64
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithms.types import AnswerType
from conf.schema import DataConfig, DataFormat
from tasks.dataset import BadRow, PromptDataset
from tasks.errors import DataError
from tasks.images import load_image
from tests.data_fixtures import (
    embedded_rows,
    picture,
    verl_rows,
    virl39k_rows,
    write_embedded,
    write_jsonl,
    write_saved_to_disk,
    write_verl,
    write_virl39k,
)


@pytest.fixture
def settings(tmp_path):
    return {"image_cache": str(tmp_path / "cache")}


def read(path, settings, **more):
    return PromptDataset(path, DataConfig(**settings, **more))


def reasons(data):
    return {row.row_id: row.reason for row in data.bad_rows}


@pytest.mark.parametrize("wanted", [DataFormat.auto, DataFormat.virl39k])
def test_virl39k_with_its_oddities(tmp_path, settings, wanted):
    data = read(write_virl39k(tmp_path), settings, format=wanted)
    assert data.layout == "virl39k"
    assert len(data) == 16
    assert reasons(data) == {"MMK12-17-unbalanced": "unbalanced braces in the boxed answer"}
    by_id = {prompt.prompt_id: prompt for prompt in data}
    assert [Path(path).name for path in by_id["Processed-5-two-images"].image_paths] == ["a.png", "b.png"]
    assert by_id["DeepScaleR-7-text"].image_paths == by_id["DeepScaleR-8-null-image"].image_paths == ()
    assert by_id["Processed-6-marker-in-the-middle"].question == "In the figure <image> the angle is what?"
    assert by_id["MMK12-13-escaped-brace"].answer.startswith("\\left\\{\\eqalign{")
    assert by_id["M3CoT-9-science"].answer == "\\text{heart}"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("wanted", [DataFormat.auto, DataFormat.embedded])
def test_embedded_pictures_are_written_once_by_their_content(tmp_path, settings, wanted):
    data = read(write_embedded(tmp_path / "set"), settings, format=wanted)
    assert [prompt.prompt_id for prompt in data] == [f"e{i}" for i in range(6)]
    assert [prompt.answer for prompt in data] == list("012345")
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 3  # six rows, three pictures
    for prompt in data:
        loaded = load_image(prompt.image_paths[0])
        assert Path(loaded.ref.path).stem == loaded.ref.sha256
    times = [file.stat().st_mtime_ns for file in files]
    read(tmp_path / "set", settings)
    assert [file.stat().st_mtime_ns for file in files] == times


def test_a_picture_that_was_cut_off_in_the_cache_is_written_again(tmp_path, settings):
    path = Path(read(write_embedded(tmp_path / "set"), settings)[0].image_paths[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    read(tmp_path / "set", settings)
    assert path.read_bytes() == whole


def test_embedded_pictures_as_plain_bytes_or_as_one_picture(tmp_path, settings):
    rows = [{"problem": "?", "answer": "1", "images": [picture(mark=1), picture(mark=2)]}]
    assert len(read(write_embedded(tmp_path / "a", rows, shards=1), settings)[0].image_paths) == 2
    rows = [{"problem": "?", "answer": "1", "image": {"bytes": picture(), "path": "a.png"}}]
    data = read(write_embedded(tmp_path / "b", rows, shards=1), settings)
    assert len(data[0].image_paths) == 1
    assert data[0].prompt_id == "row-0"


@pytest.mark.parametrize("wanted", [DataFormat.auto, DataFormat.verl])
def test_verl(tmp_path, settings, wanted):
    data = read(write_verl(tmp_path), settings, format=wanted)
    first = data[0]
    assert (first.prompt_id, first.answer, first.category, first.source) == (
        "hiyouga/geometry3k/train/0",
        "0",
        "math",
        "hiyouga/geometry3k",
    )
    assert first.question == "<image>Find x0. Put your answer in \\boxed{}."
    assert len(first.image_paths) == 1
    hard = read(tmp_path, settings, pass_rate_column="extra_info.pass_rate", max_pass_rate=0.25)
    assert [prompt.answer for prompt in hard] == ["0", "1"]


def test_verl_messages(tmp_path, settings):
    rows = verl_rows()
    rows[0]["prompt"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    rows[1]["prompt"] = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    rows[2]["prompt"] = []
    data = read(write_verl(tmp_path, rows), settings)
    assert data[0].question == "Be brief.\n\n1+1?"
    assert list(reasons(data).values()) == [
        "prompt has the roles user, assistant, user, expected one question: system (or not) and user",
        "prompt has the roles , expected one question: system (or not) and user",
    ]


@pytest.mark.parametrize("wanted", [DataFormat.auto, DataFormat.jsonl])
def test_json_lines(tmp_path, settings, wanted):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture())
    address = f"data:image/png;base64,{base64.b64encode(picture(mark=3)).decode()}"
    rows = [
        {"id": 1, "question": "1+1?", "answer": 2, "category": "sums"},
        {
            "id": 2,
            "problem": "Which?",
            "answer": "b",
            "image": "pictures/a.png",
            "answer_type": {"kind": "choice", "options": ["red", "blue"]},
        },
        {"id": 3, "question": "How long?", "answer": "5", "images": [address], "answer_type": {"kind": "number", "unit": "cm"}},
        "{broken",
        "[1, 2]",
        {"id": 6, "question": "?", "answer": "E", "answer_type": {"kind": "choice", "options": ["red", "blue"]}},
        {"id": 7, "question": "?", "answer": "1", "answer_type": {"kind": "choise"}},
        {"id": 8, "question": "?", "answer": "1", "answer_type": {"options": ["a"], "colour": 1}},
        {"id": 9, "question": "?", "answer": "1", "answer_type": {"kind": "scored", "scorer": "os.system"}},
        {"id": 10, "question": "?", "answer": "1", "image": "data:image/png;base64,!!"},
        {"id": 11, "question": "?", "answer": True},
        {"id": 12, "question": "?"},
    ]
    data = read(write_jsonl(tmp_path, rows), settings, format=wanted)
    assert [(prompt.prompt_id, prompt.answer, len(prompt.image_paths)) for prompt in data] == [("1", "2", 0), ("2", "b", 1), ("3", "5", 1)]
    assert data[1].answer_type == AnswerType(kind="choice", options=("red", "blue"))
    assert data[2].answer_type == AnswerType(kind="number", unit="cm")
    found = reasons(data)
    assert len(found) == 9
    for row_id, reason in {
        "row 3": "the line isn't JSON",
        "row 4": "the line isn't a JSON object but list",
        "6": "the answer 'E' is none of the 2 options",
        "7": "has the kind 'choise', expected free, choice or number",
        "8": "answer_type isn't a mapping of kind, options",
        "9": "has the kind 'scored', expected free, choice or number",
        "10": "damaged base64",
        "11": "answer isn't text but bool",
        "12": "missing answer",
    }.items():
        assert reason in found[row_id]


@pytest.mark.parametrize(("split", "wanted"), [("", DataFormat.auto), ("train", DataFormat.hf)])
def test_a_folder_saved_to_disk(tmp_path, settings, split, wanted):
    data = read(write_saved_to_disk(tmp_path, embedded_rows(), split=split), settings, format=wanted)
    assert [prompt.prompt_id for prompt in data] == [f"e{i}" for i in range(6)]
    assert load_image(data[0].image_paths[0]).size == (48, 64)


def test_layouts_are_independent_of_how_they_are_stored(tmp_path, settings):
    assert read(write_saved_to_disk(tmp_path, verl_rows()), settings).layout == "verl"


def test_a_single_file_can_be_named(tmp_path, settings):
    write_virl39k(tmp_path)
    assert len(read(tmp_path / "39Krelease.parquet", settings)) == 16


def test_files_that_do_not_belong_together_are_refused(tmp_path, settings):
    write_verl(tmp_path)
    (tmp_path / "test.parquet").write_bytes((tmp_path / "train.parquet").read_bytes())
    with pytest.raises(DataError, match=r"several data files, found test\.parquet, train\.parquet; name one"):
        read(tmp_path, settings)
    write_embedded(tmp_path / "e")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "e" / "data" / "train-00001-of-00002.parquet")
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet has the columns other, but train-00000"):
        read(tmp_path / "e", settings)
    write_saved_to_disk(tmp_path / "s", embedded_rows(), split="train")
    (tmp_path / "s" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="holds the splits train, test; name the folder of one"):
        read(tmp_path / "s", settings)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [(DataFormat.jsonl, "stored as jsonl, but"), (DataFormat.verl, "missing columns prompt, reward_model of the format verl")],
)
def test_a_format_that_is_named_must_be_there(tmp_path, settings, wanted, said):
    with pytest.raises(DataError, match=said):
        read(write_virl39k(tmp_path), settings, format=wanted)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"_data_files": 3}'])
def test_a_damaged_saved_folder(tmp_path, settings, content):
    write_saved_to_disk(tmp_path, embedded_rows())
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(DataError, match=r"state\.json: not what"):
        read(tmp_path, settings)
    write_saved_to_disk(tmp_path, embedded_rows())
    (tmp_path / "data-00001-of-00002.arrow").write_bytes(b"ARROW1 but no more")
    with pytest.raises(DataError, match="not a readable arrow file"):
        read(tmp_path, settings)


def test_damaged_lines_cost_only_themselves(tmp_path, settings):
    (tmp_path / "data.jsonl").write_bytes(
        b'{"question": "1+1?", "answer": "2"}\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"question": "2+2?", "answer": "4"}\n'
    )
    data = read(tmp_path, settings)
    assert [prompt.answer for prompt in data] == ["2", "4"]
    assert len(data.bad_rows) == 2


def test_pictures_of_no_bytes_and_of_no_kind(tmp_path, settings):
    rows = [{"problem": "?", "answer": "1", "images": [{"bytes": content, "path": None}]} for content in (picture(), b"", None)]
    data = read(write_embedded(tmp_path, rows, shards=1), settings)
    assert len(data) == 1
    assert data.bad_rows == [
        BadRow(row_id="row 1", reason="an image of no bytes"),
        BadRow(row_id="row 2", reason="an image is neither a path nor bytes but NoneType"),
    ]


def test_pictures_are_read_only_where_the_selection_wants_them(tmp_path, settings):
    rows = [{**row, "category": "ab"[i % 2]} for i, row in enumerate(embedded_rows())]
    rows[1]["images"][0]["bytes"] = picture("red")
    read(write_embedded(tmp_path / "set", rows), settings, categories=["b"])
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 3


def test_virl39k_fixture_has_the_published_columns(tmp_path):
    write_virl39k(tmp_path)
    names = ["question", "answer", "PassRate_32BTrained", "PassRate_7BBase", "category", "source", "qid", "image"]
    assert pq.read_schema(tmp_path / "39Krelease.parquet").names == names
    assert len({row["category"] for row in virl39k_rows()}) == 8


def scored(answer, gold, row):
    return 1.0


def rows_of(path):
    yield {"question": "1+1?", "answer": "2", "metadata": {"difficulty": 3}, "category": path}


def broken_rows(path):
    raise KeyError(path)


def test_rows_of_a_user_s_reader_with_a_user_s_scorer(settings):
    # pytest imports this module under its path from the root
    here = __name__
    data = read("anything", settings, reader=f"{here}.rows_of", scorer=f"{here}.scored")
    assert data[0].category == "anything"
    assert data[0].answer_type.kind == "scored"
    assert json.loads(data[0].answer_type.data)["metadata"] == {"difficulty": 3}
    with pytest.raises(DataError, match=r"data\.reader = .*broken_rows, data path 'anything': KeyError"):
        read("anything", settings, reader=f"{here}.broken_rows")
    with pytest.raises(DataError, match="names no function"):
        read("anything", settings, reader=f"{here}.rows_of", scorer=f"{here}.nothing")
