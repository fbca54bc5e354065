"""Small data sets in the layouts that users have, with made-up rows and the oddities of the real ones."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

# As published, in the published order: https://huggingface.co/datasets/TIGER-Lab/ViRL39K, file 39Krelease.parquet
VIRL39K_SCHEMA = pa.schema(
    [
        ("question", pa.string()),
        ("answer", pa.string()),
        ("PassRate_32BTrained", pa.float64()),
        ("PassRate_7BBase", pa.float64()),
        ("category", pa.string()),
        ("source", pa.string()),
        ("qid", pa.string()),
        ("image", pa.list_(pa.string())),
    ]
)
GEOMETRY, ALGEBRA, SCIENCE, STEM = "(GradeSchool) Geometric", "(GradeSchool) Non-Geo Math", "(GradeSchool) Science", "Broader STEM Topics"
COMMONSENSE, SOCIAL, SPATIAL, CHARTS = "Commonsense", "Social Science", "Spatial Reasoning", "Tables/Diagrams/Charts"
# Of the real file's row 34209: balanced, but not for whoever counts escaped braces.
ESCAPED_BRACE = "\\boxed{\\left\\{\\eqalign{&x+y-4=30\\cr&(x-4)-(y-4)=2\\cr }\\right.}"


def picture(color: str = "steelblue", *, size: tuple[int, int] = (64, 48), mark: int = 0) -> bytes:
    """A PNG; pictures with other marks have other bytes."""
    image = Image.new("RGB", size, color)
    ImageDraw.Draw(image).ellipse((8 + mark, 8, 30 + mark, 30), fill="white")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def virl39k_rows() -> list[dict[str, Any]]:
    """Rows with ViRL39K's columns; the qid's last part says what is special about each."""

    def row(
        qid: str, question: str, answer: str, category: str, source: str, images: list[str] | None, large: float | None, small: float | None
    ):
        rates = {"PassRate_32BTrained": large, "PassRate_7BBase": small}
        return {"question": question, "answer": answer, **rates, "category": category, "source": source, "qid": qid, "image": images}

    a, b, c = "images/a.png", "images/b.png", "images/c.png"
    return [
        row("MMK12-1-plain", "<image>How long is AB?", "\\boxed{5}", GEOMETRY, "MMK12", [a], 0.5, -1.0),
        row("MMK12-2-easy", "<image>Which number is shown?", "\\boxed{8}", ALGEBRA, "MMK12", [b], 1.0, 1.0),
        row("MMK12-3-easy-for-32b-only", "<image>What is the sum?", "\\boxed{12}", CHARTS, "MMK12", [c], 1.0, 0.25),
        row("MMK12-4-never-solved", "<image>Prove it.", "\\boxed{17^\\circ}", GEOMETRY, "MMK12", [a], 0.0, -1.0),
        row(
            "Processed-5-two-images",
            "Compare <image> with <image>: which is larger?",
            "\\boxed{B}",
            SPATIAL,
            "Processed",
            [a, b],
            0.75,
            -1.0,
        ),
        row(
            "Processed-6-marker-in-the-middle",
            "In the figure <image> the angle is what?",
            "\\boxed{30}",
            GEOMETRY,
            "Processed",
            [c],
            0.875,
            -1.0,
        ),
        row("DeepScaleR-7-text", "Solve x^2=4 for x>0.", "\\boxed{2}", ALGEBRA, "DeepScaleR", [], 0.25, -1.0),
        row("DeepScaleR-8-null-image", "What is 7*8?", "\\boxed{56}", ALGEBRA, "DeepScaleR", None, 0.5, None),
        row("M3CoT-9-science", "<image>Which organ is this?", "\\boxed{\\text{heart}}", SCIENCE, "M3CoT", [b], 0.5, float("nan")),
        row("M3CoT-10-stem", "<image>Which circuit is it?", "\\boxed{C}", STEM, "M3CoT", [b], 0.625, -1.0),
        row("M3CoT-11-social", "<image>Which country?", "\\boxed{A}", SOCIAL, "M3CoT", [c], 0.375, -1.0),
        row("M3CoT-12-commonsense", "<image>What happens next?", "\\boxed{D}", COMMONSENSE, "M3CoT", [a], 0.5, -1.0),
        row("MMK12-13-escaped-brace", "<image>Which system of equations?", ESCAPED_BRACE, ALGEBRA, "MMK12", [a], 0.5, -1.0),
        row("MMK12-14-marker-too-many", "<image><image>How many?", "\\boxed{3}", CHARTS, "MMK12", [b], 0.5, -1.0),
        row("MMK12-15-repeated", "<image>How long is  AB?", "\\boxed{5}", GEOMETRY, "MMK12", [a], 0.5, -1.0),
        row("MMK12-17-unbalanced", "<image>What part is shaded?", "\\boxed{\\frac{1}{2}", CHARTS, "MMK12", [b], 0.5, -1.0),
        row("MMK12-16-missing-rate", "<image>How tall is it?", "\\boxed{1.5}", GEOMETRY, "MMK12", [c], None, -1.0),
    ]


def write_virl39k(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """39Krelease.parquet and images/, as published."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for mark, name in enumerate(("a", "b", "c")):
        (folder / "images" / f"{name}.png").write_bytes(picture(mark=4 * mark))
    pq.write_table(pa.Table.from_pylist(rows or virl39k_rows(), schema=VIRL39K_SCHEMA), folder / "39Krelease.parquet")
    return folder


def embedded_rows() -> list[dict[str, Any]]:
    """Rows with pictures in them."""
    return [
        {
            "id": f"e{i}",
            "problem": f"<image>Question {i}?",
            "answer": f"\\boxed{{{i}}}",
            "images": [{"bytes": picture(mark=i % 3), "path": None}],
        }
        for i in range(6)
    ]


def write_embedded(folder: Path, rows: list[dict[str, Any]] | None = None, *, shards: int = 2) -> Path:
    """data/train-0000x-of-0000y.parquet, as on a hub."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows or embedded_rows())
    for number in range(shards):
        start, end = (len(table) * n // shards for n in (number, number + 1))
        pq.write_table(table.slice(start, end - start), folder / "data" / f"train-{number:05}-of-{shards:05}.parquet", row_group_size=2)
    return folder


def verl_rows() -> list[dict[str, Any]]:
    """Rows as verl's preprocessing scripts write them."""
    return [
        {
            "data_source": "hiyouga/geometry3k",
            "prompt": [{"role": "user", "content": f"<image>Find x{i}. Put your answer in \\boxed{{}}."}],
            "images": [{"bytes": picture(mark=i), "path": None}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": f"{i}"},
            "extra_info": {"split": "train", "index": i, "answer": f"{i}", "question": f"<image>Find x{i}.", "pass_rate": i / 4},
        }
        for i in range(4)
    ]


def write_verl(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """train.parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows or verl_rows()), folder / "train.parquet")
    return folder


def write_jsonl(folder: Path, rows: list[dict[str, Any] | str]) -> Path:
    """data.jsonl; a text stands for itself."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_saved_to_disk(folder: Path, rows: list[dict[str, Any]], *, split: str = "") -> Path:
    """What Hugging Face's ``Dataset.save_to_disk`` writes: Arrow streams, state.json and dataset_info.json; with a split, a DatasetDict."""
    target = folder / split if split else folder
    target.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    names = [f"data-{number:05}-of-00002.arrow" for number in range(2)]
    for number, name in enumerate(names):
        start, end = (len(table) * n // 2 for n in (number, number + 1))
        with pa.OSFile(str(target / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(start, end - start), max_chunksize=2)
    (target / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], "_split": split or None}))
    (target / "dataset_info.json").write_text(json.dumps({"features": {}}))
    if split:
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    return folder
