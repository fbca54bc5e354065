"""Folders with the benchmarks' published schemas and made-up rows, odd ones included: what each adapter must cope with."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXTS = pa.list_(pa.string())


def picture(shade: int = 0, *, size: tuple[int, int] = (60, 60)) -> dict[str, Any]:
    """A cell of a picture column; other shades are other pictures."""
    content = io.BytesIO()
    Image.new("RGB", size, (shade, 255 - shade, 128)).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": f"{shade}.png"}


def write(path: Path, schema: Sequence[tuple[str, pa.DataType]], rows: Sequence[dict[str, Any]]) -> None:
    """One Parquet file; a column that a row doesn't name is null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in schema}
    pq.write_table(pa.table(columns), path, row_group_size=4)


_METADATA = pa.struct(
    [(name, pa.string()) for name in ("split", "language", "source", "category", "task", "context", "grade")]
    + [("img_width", pa.int64()), ("img_height", pa.int64()), ("skills", TEXTS)]
)
MATHVISTA = [
    ("pid", pa.string()), ("question", pa.string()), ("image", pa.string()), ("decoded_image", PICTURE), ("choices", TEXTS),
    ("unit", pa.string()), ("precision", pa.float64()), ("answer", pa.string()), ("question_type", pa.string()),
    ("answer_type", pa.string()), ("metadata", _METADATA), ("query", pa.string()),
]  # fmt: skip


def mathvista(folder: Path) -> Path:
    """Choice with repeated options and a trailing space, integer, float, list, and a gold answer that is no choice."""

    def row(pid: str, kind: str, answer: str, **others: Any) -> dict[str, Any]:
        metadata = {"language": "English", "source": "S", "category": "math-targeted-vqa", "task": "figure question answering"}
        metadata |= {"context": "bar chart", "grade": "high school", "skills": ["algebraic reasoning", "statistical reasoning"]}
        base = {"pid": pid, "question": f"How many {pid}?", "decoded_image": picture(int(pid)), "answer": answer, "metadata": metadata}
        base |= {"question_type": "free_form", "answer_type": kind, "query": f"Hint: {kind}.\nQuestion: How many {pid}?"}
        return base | others

    choice = {"question_type": "multi_choice"}
    rows = [
        row("1", "text", "blue", choices=["red", "blue "], **choice),
        row("2", "integer", "3", unit="years"),
        row("3", "float", "2.55", precision=2.0),
        row("4", "list", "[1, 2, 3]"),
        row("5", "text", "12", choices=["12", "13", "12"], **choice),
        row("6", "text", "green", choices=["red", "blue"], **choice),
        row("7", "text", "a", choices=["c", "b", "a"], **choice),
    ]
    write(folder / "data/testmini-00000-of-00001-725687bf7a18d64b.parquet", MATHVISTA, rows)
    write(folder / "data/test-00000-of-00002-6b81bd7f7e2065e6.parquet", MATHVISTA, rows[:1])
    return folder


MATHVERSE = [
    ("sample_index", pa.string()), ("problem_index", pa.string()), ("problem_version", pa.string()), ("question", pa.string()),
    ("image", PICTURE), ("answer", pa.string()), ("question_type", pa.string()),
    ("metadata", pa.struct([(name, pa.string()) for name in ("split", "source", "subject", "subfield")])),
    ("query_wo", pa.string()), ("query_cot", pa.string()), ("question_for_eval", pa.string()),
]  # fmt: skip
MATHVERSE_VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")


def mathverse(folder: Path) -> Path:
    """One problem in five versions, and golds with labels, units, letters past the options and several letters."""
    asked = "What is the angle?\nChoices:\nA:40°\nB:50°\nC:60°\nD:70°"

    def row(index: int, version: str, answer: str, kind: str = "multi-choice", question: str = asked) -> dict[str, Any]:
        shown = "" if version == "Vision Only" else question
        metadata = {"split": "testmini", "source": "GeoQA", "subject": "Plane Geometry", "subfield": "Angle"}
        return {
            "sample_index": str(index), "problem_index": "1", "problem_version": version, "question": shown, "image": picture(index),
            "answer": answer, "question_type": kind, "metadata": metadata, "query_wo": f"Directly.\nQuestion: {shown}",
            "query_cot": f"Reason first.\nQuestion: {shown}", "question_for_eval": question,
        }  # fmt: skip

    rows = [row(number, version, "B") for number, version in enumerate(MATHVERSE_VERSIONS, 1)]
    rows += [
        row(6, "Text Lite", "Area $=9 \\pi \\mathrm{cm}^{2}$", "free-form", "Find the area."),
        row(7, "Text Lite", "2191.7 metres", "free-form", "How far?"),
        row(8, "Text Lite", "118\u6389T", "free-form", "Which bearing?"),
        row(9, "Text Lite", "F", "multi-choice", "Which one?"),
        row(10, "Text Lite", "C\nD", "multi-choice"),
        row(11, "Text Lite", "Because the two triangles share a side and have equal heights over it.", "free-form", "Why?"),
        row(12, "Text Lite", "(C)"),
    ]
    write(folder / "testmini.parquet", MATHVERSE, rows)
    write(folder / "testmini_text_only.parquet", MATHVERSE, rows[:1])
    return folder


MATHVISION = [
    ("id", pa.string()), ("question", pa.string()), ("options", TEXTS), ("image", pa.string()), ("decoded_image", PICTURE),
    ("answer", pa.string()), ("solution", pa.string()), ("level", pa.int64()), ("subject", pa.string()),
]  # fmt: skip


def mathvision(folder: Path) -> Path:
    """Letters as options, options that are missing, markers of a merged picture, boxed and damaged golds."""

    def row(number: int, question: str, answer: str, options: Sequence[str] = (), level: int = 1) -> dict[str, Any]:
        base = {"id": str(number), "question": question, "options": list(options), "image": f"images/{number}.jpg"}
        return base | {"decoded_image": picture(number % 256), "answer": answer, "level": level, "subject": "algebra"}

    rows = [
        row(4, "Which one?\n<image1>", "B", ("3", "4", "5", "6", "7")),
        row(59, "Which shape?\n<image1>", "C"),
        row(5, "Which of <image1> and <image2>?", "A", tuple("ABCDE")),
        row(2653, "Which picture?", "D", tuple(f"<image{n}>" for n in range(1, 6))),
        row(2828, "How much?\n<image1>", "$\\boxed{7}$", level=5),
        row(2830, "Which part?\n<image1>", "\x0crac{36}{13}", level=5),
        row(2955, "How large is the angle?\n<image1>", "69{degrees}"),
        row(6, "No gold\n<image1>", "Z", ("1", "2", "3", "4", "5")),
    ]
    write(folder / "data/test-00000-of-00001-3532b8d3f1b4047a.parquet", MATHVISION, rows)
    write(folder / "data/testmini-00000-of-00001-f8ff70fcb2f29b1d.parquet", MATHVISION, rows[:1])
    return folder


_MMMU_IMAGES = [(f"image_{number}", PICTURE) for number in range(1, 8)]
_MMMU = [("id", pa.string()), ("question", pa.string()), ("options", pa.string()), ("explanation", pa.string()), *_MMMU_IMAGES]
MMMU = [*_MMMU, *((name, pa.string()) for name in ("img_type", "answer", "topic_difficulty", "question_type", "subfield"))]


def mmmu(folder: Path) -> Path:
    """Pictures in the options and out of order, open questions with a number, a letter and a list of golds."""
    multiple, easy = {"question_type": "multiple-choice"}, {"topic_difficulty": "Easy", "subfield": "x", "img_type": "['Diagrams']"}
    rows = [
        {
            "id": "validation_Art_1", "question": "Look at <image 2> first, then <image 1>.", "options": "['yes', 'no']", "answer": "B",
            "image_1": picture(1), "image_2": picture(2), **multiple, **easy,
        },
        {
            "id": "validation_Art_2", "question": "Which one fits <image 1>?", "options": "['<image 2>', '<image 3>']", "answer": "A",
            "image_1": picture(1), "image_2": picture(2), "image_3": picture(3), **multiple, **easy,
        },
        {"id": "validation_Art_3", "question": "Which <image 12>?", "options": "not a list", "answer": "A", **multiple, **easy},
    ]  # fmt: skip
    opened = [
        {"id": "validation_Math_1", "question": "How much, see <image 1>?", "options": "[]", "answer": "2000000", "image_1": picture(4)},
        {"id": "validation_Math_2", "question": "Two names of <image 1>?", "options": "[]", "answer": "['24/7', '3.429']"},
        {
            "id": "validation_Math_3",
            "question": "Which vitamin does <image 1> show?",
            "options": "[]",
            "answer": "C",
            "image_1": picture(6),
        },
    ]
    write(folder / "Art/validation-00000-of-00001.parquet", MMMU, rows)
    write(folder / "Art/test-00000-of-00001.parquet", MMMU, rows[:1])
    write(folder / "Math/validation-00000-of-00001.parquet", MMMU, [row | {"question_type": "open"} | easy for row in opened])
    return folder


MMMU_PRO = [*_MMMU, *((name, pa.string()) for name in ("img_type", "answer", "topic_difficulty", "subject"))]
MMMU_PRO_VISION = [("id", pa.string()), ("image", PICTURE), ("options", pa.string()), ("answer", pa.string()), ("subject", pa.string())]


def mmmu_pro(folder: Path) -> Path:
    """Both settings of the same questions; options that are a list within a list, and a gold answer past them."""
    ten = str([f"option {number}" for number in range(10)])
    rows = [
        {"id": "test_Art_Theory_1", "question": "Which <image 1>?", "options": ten, "answer": "J", "subject": "Art_Theory"},
        {"id": "validation_Accounting_29", "question": "Which?", "options": "[['7', '8', '9']]", "answer": "B", "subject": "Accounting"},
        {"id": "test_Math_2", "question": "Which <image 1>?", "options": "['1', '2']", "answer": "C", "subject": "Math"},
    ]
    with_pictures = [row | {"image_1": picture(number), "topic_difficulty": "Hard"} for number, row in enumerate(rows, 1)]
    with_pictures[1]["image_1"] = None
    write(folder / "standard (10 options)/test-00000-of-00002.parquet", MMMU_PRO, with_pictures)
    write(folder / "standard (10 options)/test-00001-of-00002.parquet", MMMU_PRO, [])
    shot = [{key: row[key] for key in ("id", "options", "answer", "subject")} | {"image": picture(9)} for row in rows[:2]]
    write(folder / "vision/test-00000-of-00004.parquet", MMMU_PRO_VISION, shot)
    return folder


EMMA = [
    ("pid", pa.string()), ("question", pa.string()), ("options", TEXTS), ("answer", pa.string()),
    *((f"image_{number}", PICTURE) for number in range(1, 6)),
    *((name, pa.string()) for name in ("solution", "subject", "task", "category", "source", "type", "context")),
]  # fmt: skip


def emma(folder: Path) -> Path:
    """Both spellings of the type, a lower-case gold letter, leftovers of markers, a picture without a marker, options as pictures."""

    def row(pid: str, subject: str, kind: str, question: str, answer: str, **others: Any) -> dict[str, Any]:
        return {"pid": pid, "subject": subject, "type": kind, "question": question, "answer": answer, "source": "new"} | others

    write(
        folder / "Chemistry/test-00000-of-00001.parquet",
        EMMA,
        [
            row("chem_146", "Chemistry", "Multiple choice", "Which bond?", "A", options=["one", "two"], image_1=picture(1), context="None"),
            row(
                "chem_1173",
                "Chemistry",
                "Open-ended",
                "Name <image_1>.",
                "['A', 'B2']",
                options=[],
                image_1=picture(2),
                category="Counting",
            ),
        ],
    )
    write(
        folder / "Coding/test-00000-of-00001.parquet",
        EMMA,
        [
            row(
                "coding_1", "Coding", "Multiple Choice", "Which code made <image_1>?", "C", options=["<image_2>", "<image_3>", "<image_4>"],
                image_1=picture(3), image_2=picture(4), image_3=picture(5), image_4=picture(6),
                task="Vis Choose Code", category="Line; Bar",
            )
        ],
    )  # fmt: skip
    write(
        folder / "Math/test-00000-of-00001.parquet",
        EMMA,
        [row("math_1", "Math", "Open-ended", "<image_1> <image2>How many?", "12", image_1=picture(7))],
    )
    physics = row("phy_1", "Physics", "Multiple Choice", "<img_1234>Where is it?", "b", options=["here", "there"], context="A lens.")
    write(folder / "Physics/test-00000-of-00001.parquet", EMMA, [physics | {"image_1": picture(8), "category": "Path Tracing"}])
    return folder


_MEGA_COLUMNS = (
    "id", "task_name", "task_description", "global_media", "example_text", "example_media", "query_text", "query_media", "answer",
    "metric_info", "eval_context", "taxonomy_tree_path", "application", "input_format", "output_format",
)  # fmt: skip
MEGABENCH = [(name, pa.string()) for name in _MEGA_COLUMNS]


def megabench(folder: Path) -> Path:
    """Two tasks with rules of unequal size, one whose metric has no rule, a video, a path that leaves the folder, a missing marker."""
    media = folder / "data/count"
    media.mkdir(parents=True, exist_ok=True)
    for number in range(1, 5):
        (media / f"{number}.png").write_bytes(picture(number)["bytes"])

    def row(number: int, task: str, metrics: dict[str, str], answer: dict[str, Any], parser: str = "answer_string", **others: Any) -> dict:
        info = {"field_score_function": metrics, "aggregation": {"function": "mean", "field_weights": dict.fromkeys(metrics, 1)}}
        base = {"id": str(number), "task_name": task, "task_description": 'Count. Say "Answer: <YOUR ANSWER>".', "global_media": "[]"}
        base |= {"example_text": "Example <image>\nAnswer: 2", "example_media": "['./data/count/1.png']", "eval_context": "{}"}
        base |= {"query_text": "Now <image>", "query_media": "['./data/count/2.png']", "answer": repr(answer)}
        base |= {"metric_info": repr(info | {"response_parse_function": parser}), "application": "Perception"}
        return base | {"input_format": "User Interface", "output_format": "numerical"} | others

    exact = {"count": "exact_str_match"}
    several = {"colour": "simple_str_match", "boxes": "nbbox_iou_tuple"}
    rows = [
        row(1, "count", exact, {"count": "3"}),
        row(2, "count", exact, {"count": "4"}),
        row(3, "describe", several, {"colour": "Dark-red", "boxes": "[(0, 0, 1, 1)]"}, "json"),
        row(4, "poem", {"poem": "constrained_generation"}, {"poem": ""}, "dummy", example_text="", example_media="[]"),
        row(5, "film", exact, {"count": "1"}, query_text="See <video>", query_media="['./data/film.mp4']"),
        row(6, "escape", exact, {"count": "1"}, query_media="['../../etc/passwd']"),
        row(7, "lost", exact, {"count": "1"}, query_text="No marker"),
    ]
    write(folder / "core/test-00000-of-00001.parquet", MEGABENCH, rows)
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "mathvista": mathvista, "mathverse": mathverse, "mathvision": mathvision, "mmmu_pro": mmmu_pro, "mmmu": mmmu, "emma": emma,
    "megabench": megabench,
}  # fmt: skip
