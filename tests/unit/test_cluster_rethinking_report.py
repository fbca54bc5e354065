from pathlib import Path

import pytest
from PIL import Image

from actors.answers import EvaluatedAnswer, ForcedAnswer
from algorithms.types import Prompt
from cluster.rethinking_report import analyse, write_report
from cluster.run_folder import RunFolder


def answer(number: int, first: bool, final: bool | None, *, rethinks: bool = False) -> EvaluatedAnswer:
    """Final None: passed over."""
    forced = None
    if final is not None:
        forced = ForcedAnswer(
            first_correct=first,
            first_correct_strict=first,
            first_correct_lenient=first,
            final_correct=final,
            final_correct_strict=final,
            final_correct_lenient=final,
            y1="# no heading",
            trigger="\n\nWait",
            y2=f" y2 of {number}",
            extra_tokens=10 + number,
        )
    right = first if final is None else final
    return EvaluatedAnswer(
        prompt_id=f"q{number}",
        category="c",
        correct_strict=right,
        correct_lenient=right,
        grade_reason="equal",
        finish_reason="stop",
        num_response_tokens=5,
        response="r",
        answer="8",
        rethinks=rethinks,
        forced=forced,
        passed_over="" if forced else "unfinished",
    )


ANSWERS = [
    answer(0, True, False),
    answer(1, False, True, rethinks=True),
    answer(2, True, True),
    answer(3, True, None),
    answer(4, True, False),
]


def test_a_forced_evaluation_can_be_worse_and_says_so() -> None:
    figures = analyse(ANSWERS)
    assert figures["accuracy_none"] == 0.8 and figures["accuracy_forced"] == pytest.approx(0.6) and figures["accuracy_bound"] == 1.0
    assert figures["transitions"] == {"right_to_right": 1, "right_to_wrong": 2, "wrong_to_right": 1, "wrong_to_wrong": 0}
    assert figures["passed_over"] == {"unfinished": 1} and figures["forced"] == 4
    assert figures["extra_tokens_mean"] == (10 + 11 + 12 + 14) / 4
    assert figures["spontaneous_ratio"] == 0.2
    assert figures["accuracy_with_spontaneous"] == 0.0 and figures["accuracy_without_spontaneous"] == 1.0


def test_without_forcing_only_the_spontaneous_figures_are_there() -> None:
    plain = [EvaluatedAnswer(**{**{f: getattr(a, f) for f in a.__slots__}, "forced": None, "passed_over": ""}) for a in ANSWERS]
    assert analyse(plain).keys() == {"spontaneous_ratio", "accuracy_with_spontaneous", "accuracy_without_spontaneous"}
    assert analyse([])["spontaneous_ratio"] is None


def test_the_report_has_every_cell_with_its_pictures(tmp_path: Path) -> None:
    picture = str(tmp_path / "picture.png")
    Image.new("RGB", (8, 8)).save(picture)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    questions = {
        f"q{n}": Prompt(
            prompt_id=f"q{n}", question="<image>How many?", image_paths=(picture,), answer="8", category="c", source="s"
        )
        for n in range(5)
    }  # fmt: skip
    steps = [{"step": step, "rethinking/forced_fraction": 0.5, "rethinking/wrong_to_right": 0.1} for step in (1, 2)]
    evaluations = {"before training": {"rethinking": analyse(ANSWERS)}, "older": {}}
    write_report(folder, evaluations=evaluations, answers=ANSWERS, questions=questions, metrics=steps)
    text = (folder.path / "rethinking.md").read_text()
    assert "| before training | 0.800 | 0.600 | 1.000 | 0.200 | 0.000 | 1.000 |" in text
    assert "| before training | 1 | 2 | 1 | 0 | 1 | 11.8 |" in text
    cells = text.split("\n### ")[1:]
    assert [cell.split("\n")[0] for cell in cells] == ["right to right", "right to wrong", "wrong to right", "wrong to wrong"]
    assert "y2 of 0" in cells[1] and "y2 of 4" in cells[1] and "None." in cells[3]
    assert "\n    # no heading" in text  # a response is no Markdown
    pictures = {line[line.index("(") + 1 : -1] for line in text.splitlines() if line.startswith("![")}
    assert len(pictures) == 5 and all((folder.path / name).stat().st_size > 0 for name in pictures)
