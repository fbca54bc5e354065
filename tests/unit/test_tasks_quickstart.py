import hashlib
import json
import random

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from conf.schema import DataConfig, ImageSelection
from tasks.dataset import PromptDataset
from tasks.extraction import strict_answer
from tasks.images import load_image
from tasks.prompts import PromptEncoder, load_tokenizer
from tasks.quickstart import build_data, build_tiny_model
from tasks.quickstart.data import QuickstartSizes, _pictures, _shape_rows
from tasks.quickstart.questions import arithmetic_questions, shape_answer
from tasks.quickstart.tokenizer import MAX_PIXELS, MIN_PIXELS

TRAIN = QuickstartSizes(shapes=400, digits=200, arithmetic=150)
TEST = QuickstartSizes(shapes=120, digits=60, arithmetic=40)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_data(tmp_path_factory.mktemp("quickstart"), seed=1, train_sizes=TRAIN, test_sizes=TEST)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny", 1)


def rows(folder):
    return pq.read_table(folder / "data.parquet").to_pylist()


def test_the_folders_are_data_sets_without_bad_rows(data):
    for folder, sizes in ((data.train, TRAIN), (data.test, TEST)):
        prompts = PromptDataset(folder)
        assert prompts.bad_rows == []
        counts = {category: sum(prompt.category == category for prompt in prompts) for category in ("shapes", "digits", "arithmetic")}
        assert counts == {"shapes": sizes.shapes, "digits": sizes.digits, "arithmetic": sizes.arithmetic}
        assert len(PromptDataset(folder, DataConfig(images=ImageSelection.none))) == sizes.arithmetic


def test_train_and_test_share_no_picture_and_no_expression(data):
    hashes = [
        {hashlib.sha256(file.read_bytes()).hexdigest() for file in (folder / "images").iterdir()} for folder in (data.train, data.test)
    ]
    assert all(hashes)
    assert not hashes[0] & hashes[1]
    texts = [{row["question"] for row in rows(folder) if row["category"] == "arithmetic"} for folder in (data.train, data.test)]
    assert not texts[0] & texts[1]


def test_an_expression_is_in_one_split_whatever_the_order_of_its_operands():
    def sums(split):
        found = set()
        for question in arithmetic_questions(count=600, seed=1, split=split):
            left = question.worked.partition("=")[0]
            if "+" in left:
                found.add(tuple(sorted(left.split("+"))))
        return found

    assert len(sums("test")) > 30
    assert not sums("train") & sums("test")


def test_worked_answers_end_in_the_boxed_answer_and_hold_up(data):
    for row in rows(data.train):
        gold = row["answer"]
        for text in (row["worked"], row["rethink"]):
            assert text.endswith(gold)
            assert f"\\boxed{{{strict_answer(text)}}}" == gold
        assert row["rethink"].count("Wait") == 1
        assert row["question"].count("<image>") == len(row["image"])
        if row["category"] != "shapes":
            left, _, right = row["worked"].rpartition(" \\boxed")[0].rstrip(".").split(". ")[-1].partition("=")
            assert eval(left) == int(right)


def test_first_attempts_are_right_and_wrong(data):
    first = [(strict_answer(row["rethink"].partition("Wait")[0]), row["answer"]) for row in rows(data.train)]
    boxed = [(answer, gold) for answer, gold in first if answer is not None]
    right = sum(f"\\boxed{{{answer}}}" == gold for answer, gold in boxed)
    assert 0.3 < len(boxed) / len(first) < 0.7
    assert 0.4 < right / len(boxed) < 0.9


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_shapes_answers_are_those_of_the_package(split):
    questions = _shape_rows(split)
    pictures = _pictures(questions)
    assert len(pictures) > 0.85 * len({number for _, _, number in questions})
    for text, answer, number in questions:
        if number in pictures:
            shape, color = pictures[number]
            assert shape_answer(text, shape=shape, color=color) == answer


def test_yes_and_no_are_balanced(data):
    answers = [row["answer"] for row in rows(data.train) if row["answer"] in ("\\boxed{yes}", "\\boxed{no}")]
    assert 0.4 < answers.count("\\boxed{yes}") / len(answers) < 0.6


def test_the_same_settings_are_built_once_and_give_the_same_data(data, tmp_path):
    before = (data.train / "data.parquet").stat().st_mtime_ns
    build_data(data.train.parent, seed=1, train_sizes=TRAIN, test_sizes=TEST)
    assert (data.train / "data.parquet").stat().st_mtime_ns == before
    again = build_data(tmp_path, seed=1, train_sizes=TRAIN, test_sizes=TEST)
    assert rows(again.train) == rows(data.train)
    other = build_data(tmp_path, seed=2, train_sizes=TRAIN, test_sizes=TEST)
    assert rows(other.train) != rows(data.train)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="isn't quickstart data"):
        build_data(tmp_path, seed=1, train_sizes=TRAIN, test_sizes=TEST)
    assert (tmp_path / "train" / "mine.txt").read_text() == "keep"


def test_the_model_runs_on_two_pictures_as_its_processor_lays_them_out(data, model_folder):
    processor = AutoProcessor.from_pretrained(model_folder)
    model = AutoModelForImageTextToText.from_pretrained(model_folder)
    config = json.loads((model_folder / "config.json").read_text())
    assert config["model_type"] == "qwen2_5_vl"
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert 2.0e6 < sum(parameter.numel() for parameter in model.parameters()) < 3.0e6
    assert config["text_config"]["vocab_size"] >= len(processor.tokenizer)

    prompt = next(prompt for prompt in PromptDataset(data.train) if len(prompt.image_paths) == 2)
    loaded = [load_image(path) for path in prompt.image_paths]
    tokenizer = load_tokenizer(model_folder)
    encoder = PromptEncoder(tokenizer, suffix=DataConfig.prompt_suffix, max_prompt_tokens=64, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    ids = encoder.encode(prompt, [image.size for image in loaded])
    batch = processor(text=[tokenizer.decode(ids)], images=[image.image for image in loaded], return_tensors="pt")
    assert batch["input_ids"][0].tolist() == ids.tolist()  # a digit is one image token
    with torch.no_grad():
        logits = model(**batch).logits
    assert torch.isfinite(logits).all()
    # Another picture gives another answer: the images reach the text.
    batch["pixel_values"] = -batch["pixel_values"]
    with torch.no_grad():
        assert not torch.allclose(model(**batch).logits[0, -1], logits[0, -1], atol=1e-6)


def test_a_picture_of_64_pixels_takes_four_tokens(model_folder):
    grid = AutoImageProcessor.from_pretrained(model_folder)(images=Image.new("RGB", (64, 64)), return_tensors="pt")["image_grid_thw"]
    assert grid.tolist() == [[1, 4, 4]]


def test_the_tokenizer_is_short_and_exact(data, model_folder):
    tokenizer = load_tokenizer(model_folder)
    assert len(tokenizer.encode(DataConfig.prompt_suffix)) == 2
    worked = [row["worked"] for row in rows(data.train)]
    lengths = [len(tokenizer.encode(text)) for text in worked]
    assert sum(lengths) / len(lengths) < 20
    rng = random.Random(0)
    noise = "".join(chr(rng.choice([rng.randrange(0x20, 0x7F), rng.randrange(0xA0, 0xD000), 0, 10])) for _ in range(2000))
    for text in (*worked[:50], noise, "  \n\n x  \t\\boxed{\\boxed{"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>"), skip_special_tokens=True) == "a"


def test_the_seed_changes_the_weights_but_not_the_token_ids(model_folder, tmp_path):
    other = build_tiny_model(tmp_path / "tiny", 2)
    assert (other / "tokenizer.json").read_text() == (model_folder / "tokenizer.json").read_text()
    assert (other / "model.safetensors").read_bytes() != (model_folder / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="isn't empty"):
        build_tiny_model(other, 2)
