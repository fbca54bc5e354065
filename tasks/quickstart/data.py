"""The quickstart's data in ViRL39K's layout: a training and a test folder, made from two installed packages.

Owns the layout and the split of the pictures. Must not know models or tokenizers.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tasks.quickstart.questions import COLORS, SHAPES, Question, Split, arithmetic_questions, digit_questions, shape_questions

_LAYOUT_VERSION = 4  # part of the settings hash; raise it when the same settings shall give other data
_TRAIN_DIGITS = 1400  # of scikit-learn's 1,797 pictures; the rest is for the test questions
_DIGIT_PIXELS = 28  # one image token

_COLUMNS = pa.schema(
    [
        pa.field("question", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("PassRate_32BTrained", pa.float64()),
        pa.field("PassRate_7BBase", pa.float64()),
        pa.field("category", pa.string()),
        pa.field("source", pa.string()),
        pa.field("qid", pa.string()),
        pa.field("image", pa.list_(pa.string())),
        pa.field("worked", pa.string()),
        pa.field("rethink", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickstartData:
    """The two folders, each in ViRL39K's layout with the extra columns ``worked`` and ``rethink``."""

    train: Path
    test: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickstartSizes:
    """How many questions of each category a split has."""

    shapes: int
    digits: int
    arithmetic: int


TRAIN_SIZES = QuickstartSizes(shapes=9000, digits=9000, arithmetic=2000)
TEST_SIZES = QuickstartSizes(shapes=900, digits=900, arithmetic=200)


def build_data(
    folder: str | os.PathLike[str],
    *,
    seed: int = 1,
    train_sizes: QuickstartSizes = TRAIN_SIZES,
    test_sizes: QuickstartSizes = TEST_SIZES,
) -> QuickstartData:
    """Write the quickstart's training and test folders, unless the same ones are there.

    Args:
        folder: gets the sub-folders ``train`` and ``test``; made when missing.
        seed: of the choice of questions, of the digits' split and of the order.
        train_sizes: questions by category.
        test_sizes: questions by category.

    Returns:
        The two folders.

    Raises:
        FileExistsError: when a sub-folder holds something else than quickstart data.
        ModuleNotFoundError: when easy-vqa or scikit-learn isn't installed.
    """
    root = Path(folder)
    sizes: dict[Split, QuickstartSizes] = {"train": train_sizes, "test": test_sizes}
    for split, split_sizes in sizes.items():
        settings = {
            "layout_version": _LAYOUT_VERSION,
            "split": split,
            "seed": seed,
            "sizes": asdict(split_sizes),
            "easy-vqa": importlib.metadata.version("easy-vqa"),
        }
        settings_hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        if _manifest_hash(root / split) != settings_hash:
            questions = quickstart_questions(split, seed=seed, sizes=split_sizes)
            _write_split(root / split, {"hash": settings_hash, "settings": settings}, questions, split=split, seed=seed)
    return QuickstartData(train=root / "train", test=root / "test")


def quickstart_questions(split: Split, *, seed: int, sizes: QuickstartSizes) -> list[Question]:
    """Make the questions of one split, all categories mixed.

    Args:
        split: decides which pictures and which arithmetic expressions may be used.
        seed: of everything random.
        sizes: questions by category.

    Returns:
        The questions in a random order.
    """
    pictures = _pictures(_shape_rows(split))
    rows = [row for row in _shape_rows(split) if row[2] in pictures]
    numbers, _, labels = _digits(split, seed)
    questions = [
        *shape_questions(rows, pictures=pictures, split=split, count=sizes.shapes, seed=seed),
        *digit_questions(dict(zip(numbers, labels, strict=True)), count=sizes.digits, seed=seed, split=split),
        *arithmetic_questions(count=sizes.arithmetic, seed=seed, split=split),
    ]
    random.Random(f"order/{split}/{seed}").shuffle(questions)
    return questions


def _package_folder() -> Path:
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the quickstart's shapes come from the package easy-vqa, which isn't installed")
    return Path(spec.origin).parent / "data"


def _shape_rows(split: Split) -> list[tuple[str, str, int]]:
    rows = json.loads((_package_folder() / split / "questions.json").read_text())
    return [(text, answer, number) for text, answer, number in rows]


def _pictures(rows: Sequence[tuple[str, str, int]]) -> dict[int, tuple[str, str]]:
    """Shape and color by picture number, told by the answers to its questions; pictures whose questions leave one open are missing."""
    shapes: dict[int, set[str]] = {}
    colors: dict[int, set[str]] = {}
    for text, answer, number in rows:
        words = text.replace("?", "").split()
        present = (answer == "yes") != ("no" in words or "not" in words)
        if answer in ("yes", "no") and not present:
            continue
        told = {answer, *words}
        shapes.setdefault(number, set()).update(told & set(SHAPES))
        colors.setdefault(number, set()).update(told & set(COLORS))
    known = [number for number in shapes if len(shapes[number]) == len(colors[number]) == 1]
    return {number: (next(iter(shapes[number])), next(iter(colors[number]))) for number in known}


def _digits(split: Split, seed: int) -> tuple[list[int], np.ndarray, list[int]]:
    """Numbers, pixels [N, 8, 8] and labels of the digits that belong to a split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    _, first = np.unique(digits.data, axis=0, return_index=True)
    order = np.random.default_rng(seed).permutation(np.sort(first))
    numbers = np.sort(order[:_TRAIN_DIGITS] if split == "train" else order[_TRAIN_DIGITS:])
    return numbers.tolist(), digits.images[numbers], digits.target[numbers].tolist()


def _digit_png(pixels: np.ndarray) -> bytes:
    image = Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8))
    file = io.BytesIO()
    image.resize((_DIGIT_PIXELS, _DIGIT_PIXELS), Image.Resampling.BICUBIC).convert("RGB").save(file, format="PNG")
    return file.getvalue()


def _write_split(folder: Path, manifest: Mapping[str, object], questions: Sequence[Question], *, split: Split, seed: int) -> None:
    """Write a split beside its place and move it there in one step, so that a reader never sees half of it."""
    if folder.exists() and _manifest_hash(folder) is None:
        raise FileExistsError(f"{folder} is there and isn't quickstart data; choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / "new"
        (new / "images").mkdir(parents=True)
        _write_images(new / "images", questions, split, seed)
        pq.write_table(_table(questions, split), new / "data.parquet")
        (new / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        try:
            if folder.exists():
                os.replace(folder, Path(scratch) / "old")
            os.replace(new, folder)
        except OSError:
            if _manifest_hash(folder) != manifest["hash"]:  # else another process was faster with the same data
                raise


def _write_images(folder: Path, questions: Sequence[Question], split: Split, seed: int) -> None:
    numbers, pixels, _ = _digits(split, seed)
    by_number = dict(zip(numbers, pixels, strict=True))
    for key in sorted({key for question in questions for key in question.image_keys}):
        number = int(key.rpartition("-")[2])
        if key.startswith("digit-"):
            (folder / f"{key}.png").write_bytes(_digit_png(by_number[number]))
        else:
            shutil.copyfile(_package_folder() / split / "images" / f"{number}.png", folder / f"{key}.png")


def _table(questions: Sequence[Question], split: Split) -> pa.Table:
    rows = [
        {
            "question": question.text,
            "answer": f"\\boxed{{{question.answer}}}",
            "PassRate_32BTrained": -1.0,
            "PassRate_7BBase": -1.0,
            "category": question.category,
            "source": question.source,
            "qid": f"quickstart-{split}-{number}",
            "image": [f"images/{key}.png" for key in question.image_keys],
            "worked": question.worked,
            "rethink": question.rethink,
        }
        for number, question in enumerate(questions)
    ]
    return pa.Table.from_pylist(rows, schema=_COLUMNS)


def _manifest_hash(folder: Path) -> str | None:
    try:
        return json.loads((folder / "manifest.json").read_text())["hash"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
