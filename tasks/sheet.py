"""A picture sheet of samples, so that a person can look at data as a model gets it.

Owns the drawing. Must not know how samples are read.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from algorithms.types import Prompt
from tasks.images import load_image

_COLUMNS = 4
_CELL = (440, 470)  # pixels
_PICTURE_HEIGHT = 200
_MARGIN = 12
_LINE = 17
_TEXT_LINES = 9
_WRAP = 58  # characters that fit into a cell's width
_INK, _FAINT, _FRAME, _PAPER, _GOLD = "#1b1b1b", "#6a6a6a", "#d0d0d0", "white", "#0b6b3a"


def choose_samples(prompts: Sequence[Prompt], number: int, *, seed: int) -> list[Prompt]:
    """Choose prompts to look at, every category in turn.

    Args:
        prompts: to choose from.
        number: how many at the most.
        seed: of the choice.

    Returns:
        Prompts, by category.
    """
    by_category: dict[str, list[Prompt]] = {}
    for index in np.random.default_rng(seed).permutation(len(prompts)):
        by_category.setdefault(prompts[index].category, []).append(prompts[index])
    chosen: list[Prompt] = []
    while len(chosen) < number and any(by_category.values()):
        for category in sorted(by_category):
            if by_category[category] and len(chosen) < number:
                chosen.append(by_category[category].pop())
    return sorted(chosen, key=lambda prompt: prompt.category)


def write_sheet(prompts: Sequence[Prompt], path: Path) -> None:
    """Draw prompts with their pictures, question, answer and origin.

    Args:
        prompts: with pictures that can be read.
        path: of the PNG file to write.
    """
    rows = max(1, -(-len(prompts) // _COLUMNS))
    columns = min(_COLUMNS, max(1, len(prompts)))
    sheet = Image.new("RGB", (columns * _CELL[0], rows * _CELL[1]), _PAPER)
    for number, prompt in enumerate(prompts):
        _draw(sheet, prompt, number % _COLUMNS * _CELL[0], number // _COLUMNS * _CELL[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")


def _draw(sheet: Image.Image, prompt: Prompt, left: int, top: int) -> None:
    canvas = ImageDraw.Draw(sheet)
    canvas.rectangle((left, top, left + _CELL[0] - 1, top + _CELL[1] - 1), outline=_FRAME)
    x, y = left + _MARGIN, top + _MARGIN
    canvas.text((x, y), _shortened(prompt.prompt_id, _WRAP), fill=_INK, font=_font(13))
    canvas.text((x, y + _LINE), _shortened(f"{prompt.category or '-'} | {prompt.source or '-'}", _WRAP), fill=_FAINT, font=_font(12))
    y += 2 * _LINE + 6
    if prompt.image_paths:
        _draw_pictures(sheet, prompt, x, y)
    else:
        canvas.text((x, y), "no image", fill=_FAINT, font=_font(12))
    y += _PICTURE_HEIGHT + 8 if prompt.image_paths else _LINE + 8
    lines = [line for part in prompt.question.splitlines() or [""] for line in textwrap.wrap(part, _WRAP) or [""]]
    room = _TEXT_LINES if prompt.image_paths else _TEXT_LINES + (_PICTURE_HEIGHT - _LINE) // _LINE
    if len(lines) > room:
        lines = [*lines[: room - 1], f"... {len(prompt.question)} characters"]
    for line in lines:
        canvas.text((x, y), line, fill=_INK, font=_font(12))
        y += _LINE
    answer = f"{prompt.answer_type.kind}: {prompt.answer}"
    canvas.text((x, top + _CELL[1] - _MARGIN - _LINE), _shortened(answer, _WRAP), fill=_GOLD, font=_font(13))


def _draw_pictures(sheet: Image.Image, prompt: Prompt, left: int, top: int) -> None:
    width = (_CELL[0] - 2 * _MARGIN) // len(prompt.image_paths)
    for number, path in enumerate(prompt.image_paths):
        picture = load_image(path).image
        scale = min((width - 4) / picture.width, _PICTURE_HEIGHT / picture.height, 4.0)
        size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
        sheet.paste(picture.resize(size), (left + number * width, top))


def _shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings; it has mathematics and most alphabets."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
