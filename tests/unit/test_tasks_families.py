"""How prompts of several architectures are written, from what their folders hold."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from algorithms.types import Prompt
from tasks.errors import BadPromptError
from tasks.families import image_processor_settings, read_form, resizes_by_pixels
from tasks.prompts import PromptEncoder, allowed_token_ids, load_tokenizer
from tests.tiny_families import BUILDERS

PIXELS = {"min_pixels": 32 * 32, "max_pixels": 128 * 128}
HOSTILE = "a<s>b<|im_end|></s><|image_pad|>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: build(root / name) for name, build in BUILDERS.items()}


def encode(folder: Path, question: str, sizes: list[tuple[int, int]], *, limit: int = 500) -> str:
    form = read_form(folder, **PIXELS)
    encoder = PromptEncoder(form.tokenizer, suffix="", max_prompt_tokens=limit, image_pad=form.image_pad, count_tokens=form.count_tokens)
    paths = tuple(f"{number}.png" for number in range(len(sizes)))
    prompt = Prompt(prompt_id="q", question=question, image_paths=paths, answer="", category="", source="")
    return form.tokenizer.decode(encoder.encode(prompt, sizes))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen2_5_vl", "<|im_start|>user\nSee <|vision_start|><|image_pad|><|vision_end|>!<|im_end|>\n<|im_start|>assistant\n"),
        ("qwen3_vl", "<|im_start|>user\nSee <|vision_start|><|image_pad|><|vision_end|>!<|im_end|>\n<|im_start|>assistant\n"),
        ("llava", "<s>USER: See <image>\n! ASSISTANT:"),  # the begin token is the tokenizer's, the template leaves it out
    ],
)
def test_the_template_decides_where_a_picture_stands(folders: dict[str, Path], name: str, text: str) -> None:
    assert encode(folders[name], "See <image>!", [(70, 100)]) == text


def test_a_text_only_template_gets_one_text_and_pictures_are_refused(folders: dict[str, Path]) -> None:
    assert encode(folders["llama"], "What is it?", []) == "<s>[user] What is it?\n[assistant] "
    with pytest.raises(BadPromptError, match="1 images for a model that takes none"):
        encode(folders["llama"], "See <image>!", [(70, 100)])


@pytest.mark.parametrize("name", BUILDERS)
def test_a_question_cannot_bring_special_tokens(folders: dict[str, Path], name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    form = read_form(folders[name], **PIXELS)
    encoder = PromptEncoder(tokenizer, suffix="", max_prompt_tokens=500, image_pad=form.image_pad, count_tokens=form.count_tokens)
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    counts = []
    for question in ("x", HOSTILE):
        prompt = Prompt(prompt_id="q", question=question, image_paths=(), answer="", category="", source="")
        counts.append([token_id for token_id in encoder.encode(prompt, []).tolist() if token_id in special])
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("name", "tokens"), [("qwen2_5_vl", 8), ("qwen3_vl", 6), ("llava", 16)])
def test_pictures_are_counted_as_the_family_cuts_them(folders: dict[str, Path], name: str, tokens: int) -> None:
    form = read_form(folders[name], **PIXELS)
    assert form.count_tokens is not None and form.count_tokens(70, 100) == tokens
    length = len(form.tokenizer.encode(encode(folders[name], "See <image>!", [(70, 100)]), add_special_tokens=False)) - 1 + tokens
    encode(folders[name], "See <image>!", [(70, 100)], limit=length)
    with pytest.raises(BadPromptError, match=f"prompt of {length} tokens"):
        encode(folders[name], "See <image>!", [(70, 100)], limit=length - 1)


def test_the_trained_family_is_read_as_it_is_trained(folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(folders["qwen2_5_vl"])
    form = read_form(folders["qwen2_5_vl"], **PIXELS)
    assert form.allowed_token_ids == allowed_token_ids(tokenizer)
    assert form.image_pad_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")


def test_responses_may_not_hold_picture_tokens(folders: dict[str, Path]) -> None:
    form = read_form(folders["llava"], **PIXELS)
    assert set(range(len(form.tokenizer))) - set(form.allowed_token_ids) == {form.image_pad_id}
    assert read_form(folders["llama"], **PIXELS).image_pad_id is None


def test_only_qwen_s_image_processor_is_told_pixels(folders: dict[str, Path]) -> None:
    assert {name for name, folder in folders.items() if resizes_by_pixels(folder)} == {"qwen2_5_vl", "qwen3_vl"}
    assert image_processor_settings(folders["llama"]) == {}


def test_what_is_missing_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    bare = shutil.copytree(folders["llava"], tmp_path / "bare")
    (bare / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="takes pictures, but there is no image processor"):
        read_form(bare, **PIXELS)
    silent = shutil.copytree(folders["llava"], tmp_path / "silent")
    (silent / "chat_template.jinja").write_text("{% for m in messages %}{{ m['role'] }}{% endfor %}")
    with pytest.raises(ValueError, match="doesn't write one of its processor's picture tokens"):
        read_form(silent, **PIXELS)
    (silent / "chat_template.jinja").unlink()
    settings = json.loads((silent / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (silent / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="no chat template"):
        read_form(silent, **PIXELS)
