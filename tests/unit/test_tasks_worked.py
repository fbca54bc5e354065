"""Worked answers for a cold start: styles in the shares that were asked for, each ending in the gold answer."""

import dataclasses

import pytest

from conf.schema import DataConfig
from tasks.errors import BadPromptError, DataError
from tasks.prompts import PromptEncoder, load_tokenizer
from tasks.quickstart import build_data, build_tiny_model
from tasks.quickstart.data import QuickstartSizes
from tasks.quickstart.tokenizer import MAX_PIXELS, MIN_PIXELS
from tasks.worked import direct_trajectory, first_usable, worked_answers

SIZES = QuickstartSizes(shapes=300, digits=300, arithmetic=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(build_data(tmp_path_factory.mktemp("data"), train_sizes=SIZES, test_sizes=SIZES).train)


def choose(folder, **settings):
    defaults = {"examples": 800, "rethinking_fraction": 0.0, "seed": 1}
    return worked_answers(folder, DataConfig(path=folder), **defaults | settings)


def test_rethinking_turns_come_in_their_share(folder):
    found = ["Wait" in answer.text for answer in choose(folder, rethinking_fraction=0.2)]
    assert sum(found) / len(found) == pytest.approx(0.2, abs=0.05)
    assert not any("Wait" in answer.text for answer in choose(folder))


def test_every_answer_ends_in_the_gold_answer(folder):
    for answer in choose(folder, rethinking_fraction=0.3):
        box = f"\\boxed{{{answer.prompt.answer}}}"
        assert answer.text.endswith(box) and answer.text != box


def test_a_direct_answer_teaches_the_opening_of_its_box_only(folder, tmp_path):
    tokenizer = load_tokenizer(build_tiny_model(tmp_path / "model"))
    encoder = PromptEncoder(tokenizer, suffix="", max_prompt_tokens=256, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    prompt = choose(folder, examples=1)[0].prompt
    trajectory = direct_trajectory(prompt, encoder=encoder, tokenizer=tokenizer)
    assert trajectory.response_text == f"\\boxed{{{prompt.answer}}}"
    assert trajectory.response_token_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(trajectory.response_token_ids[trajectory.loss_mask]) == "\\boxed{"


def test_the_first_usable_answer_is_found_behind_those_that_are_not(folder, tmp_path):
    tokenizer = load_tokenizer(build_tiny_model(tmp_path / "model"))
    encoder = PromptEncoder(tokenizer, suffix="", max_prompt_tokens=256, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    good = choose(folder, examples=1)[0]
    unreadable = dataclasses.replace(good, prompt=dataclasses.replace(good.prompt, image_paths=("nowhere.png",)))
    too_long = dataclasses.replace(good, text="1" * 500)
    settings = {"encoder": encoder, "tokenizer": tokenizer, "max_response_tokens": 100}
    place, trajectory = first_usable([unreadable, too_long, good], **settings)
    assert place == 2 and trajectory.response_text == good.text
    with pytest.raises(BadPromptError, match=r"none of 2 worked answers can be used: .*nowhere\.png"):
        first_usable([too_long, unreadable], **settings)
    with pytest.raises(BadPromptError, match="all have over 100 tokens"):
        first_usable([too_long], **settings)


def test_the_choice_is_seeded(folder):
    assert choose(folder, examples=50) == choose(folder, examples=50)
    assert choose(folder, examples=50) != choose(folder, examples=50, seed=2)


def test_data_without_worked_answers_is_refused(tmp_path, folder):
    import pyarrow.parquet as pq

    table = pq.read_table(f"{folder}/data.parquet").drop_columns(["worked"])
    table = table.set_column(table.schema.get_field_index("image"), "image", [[[]] * table.num_rows])
    table = table.set_column(table.schema.get_field_index("question"), "question", [["1+1=?"] * table.num_rows])
    (tmp_path / "other").mkdir()
    pq.write_table(table, tmp_path / "other" / "data.parquet")
    with pytest.raises(DataError, match="worked"):
        choose(str(tmp_path / "other"))
