"""rethinker data check, select and passrate's journal, on data with the oddities of the real ones."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from cluster.cli import app
from cluster.passrate import COLUMN, Journal
from tasks.dataset import PromptDataset
from tasks.errors import DataError
from tasks.rewriting import write_rows
from tests.data_fixtures import embedded_rows, picture, write_embedded, write_jsonl, write_saved_to_disk, write_virl39k

RUNNER = CliRunner()


def run(*words: object):
    return RUNNER.invoke(app, ["data", *map(str, words)])


def test_check_prints_what_is_in_the_data_and_what_is_wrong_with_it(tmp_path: Path) -> None:
    write_virl39k(tmp_path)
    (tmp_path / "images" / "c.png").write_bytes(picture()[:60])
    sheet = tmp_path / "sheets" / "samples.png"
    result = run("check", tmp_path, "--sheet", sheet, "data.max_bad_fraction=0.5")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    for line in (
        "layout virl39k: 17 rows, 17 selected, 11 usable, 6 bad",
        "3 27.3% (GradeSchool) Geometric",
        "2 18.2% DeepScaleR",
        "2 18.2% 0",
        "1 9.1% 2",
        "PassRate_32BTrained, all rows: missing 1, 0 1, between 13, 1 2",
        "PassRate_7BBase, all rows: missing 15, 0 0, between 1, 1 1",
        "MMK12-17-unbalanced: unbalanced braces in the boxed answer",
        "MMK12-14-marker-too-many: 2 <image> markers for 1 images",
    ):
        assert line in lines, line
    assert sum("image can't be decoded" in line for line in lines) == 4
    assert any(line.startswith("length in characters: shortest 12, median") and line.endswith("longest 46") for line in lines)
    with Image.open(sheet) as image:
        assert image.size == (4 * 440, 3 * 470)
        assert len(image.getcolors(1 << 20) or []) > 50  # pictures and text, not an empty page


def test_check_fails_past_the_limit_and_names_every_bad_row_when_asked(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"id": i, "question": "?", "answer": "1" if i % 3 else ""} for i in range(90)])
    result = run("check", tmp_path)
    assert result.exit_code == 1
    assert "too many bad rows: 33.3% of those selected, over data.max_bad_fraction=0.05" in result.output
    assert "... and 10 more (--all-bad)" in result.output
    assert run("check", tmp_path, "--all-bad").output.count("missing answer") == 30
    assert run("check", tmp_path, "data.max_bad_fraction=0.4").exit_code == 0


def test_check_shows_a_data_set_without_a_usable_row(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"question": "?", "answer": ""}])
    result = run("check", tmp_path)
    assert result.exit_code == 1
    assert "row 0: missing answer" in result.output


def test_check_measures_tokens_with_a_model_s_tokenizer(tmp_path: Path, tiny_model: Path) -> None:
    write_virl39k(tmp_path)
    sizes = ["model.min_pixels=784", "model.max_pixels=12544"]
    result = run("check", tmp_path, "--model", tiny_model, "data.max_bad_fraction=0.2", *sizes)
    assert result.exit_code == 0, result.output
    assert "length in tokens: shortest" in result.output
    longest = run("check", tmp_path, "--model", tiny_model, "model.max_prompt_tokens=30", *sizes)
    assert longest.exit_code == 1
    assert "tokens is over max_prompt_tokens=30" in longest.output


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["check", "nowhere"], ["nowhere: no such data folder or file"]),
        (["check", ".", "data.imagess=only"], ["data.imagess", "data.images?"]),
        (["check", ".", "--config", "nothing"], ["'nothing'"]),
        (["check", "x", "--model", "nowhere"], ["--model 'nowhere'"]),
        (["select", "nowhere", "out"], ["nowhere: no such data folder or file"]),
        (["select", "x", "out", "data.reader=a.b"], ["data.reader = 'a.b'"]),
        (["passrate", "quickstart", "out", "--model", "nowhere"], ["'nowhere' is no Hugging Face model folder"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_run_is_one_sentence(words: list[str], named: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("rethinker: ") and result.stderr.count("\n") == 1
    assert all(part in result.stderr for part in named), result.stderr


def test_select_writes_what_is_kept_with_all_columns_and_its_pictures(tmp_path: Path) -> None:
    source, output = write_virl39k(tmp_path / "virl39k"), tmp_path / "hard"
    result = run("select", source, output, "--config", "virl39k_13k", "data.deduplicate=true")
    assert result.exit_code == 0, result.output
    assert "11 of 17 rows written" in result.output and "(1 bad, 1 repeated)" in result.output
    before, after = (pq.read_table(path) for path in (source / "39Krelease.parquet", output / "data.parquet"))
    assert after.schema.names == before.schema.names
    data = PromptDataset(output)
    assert [prompt.prompt_id for prompt in data] == after.column("qid").to_pylist()
    assert data.bad_rows == []
    assert sorted(path.name for path in output.iterdir()) == ["data.parquet", "images"]
    again = run("select", source, output)
    assert again.exit_code == 2 and "isn't empty" in again.stderr


@pytest.mark.parametrize("write", [write_embedded, write_saved_to_disk, write_jsonl])
def test_rates_become_a_column_in_any_layout(tmp_path: Path, write) -> None:
    rows = embedded_rows()
    if write is write_jsonl:
        rows = [{"id": row["id"], "problem": row["problem"].replace("<image>", ""), "answer": row["answer"]} for row in rows]
    source, output = write(tmp_path / "source", rows), tmp_path / "rated"
    assert write_rows(source, output, columns={COLUMN: {0: 1.0, 1: 0.0, 3: 0.5}}) == 6
    words = ["data.pass_rate_column=pass_rate", "data.max_pass_rate=0.9", f"data.image_cache={tmp_path / 'cache'}"]
    assert run("select", output, tmp_path / "hard", *words).exit_code == 0
    assert [prompt.prompt_id for prompt in PromptDataset(tmp_path / "hard")] == ["e1", "e2", "e3", "e4", "e5"]
    assert run("select", output, tmp_path / "rated-and-hard", *words, "data.keep_unrated=false").exit_code == 0
    assert [prompt.prompt_id for prompt in PromptDataset(tmp_path / "rated-and-hard")] == ["e1", "e3"]


def test_the_journal_goes_on_after_a_kill_at_any_byte(tmp_path: Path) -> None:
    settings = {"model": "m", "samples": 4}
    path = tmp_path / "pass_rates.journal"
    Journal(path, settings).add({0: 0.25, 1: "image can't be decoded", 2: 1.0})
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        journal = Journal(path, settings)
        lines = whole[:end].count(b"\n")
        assert len(journal.rates) + len(journal.bad) == max(0, lines - 1)
        journal.add({7: 0.5})
        assert Journal(path, settings).rates[7] == 0.5
    assert [json.loads(line) for line in whole.splitlines()][2] == {"row": 1, "bad": "image can't be decoded"}


def test_a_journal_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pass_rates.journal"
    Journal(path, {"samples": 4}).add({0: 0.25})
    with pytest.raises(DataError, match="was begun with samples = 4, now it is 8"):
        Journal(path, {"samples": 8})
    path.write_bytes(b"nonsense\n")
    with pytest.raises(DataError, match="is damaged"):
        Journal(path, {"samples": 4})
