"""The documentation keeps up with the product: settings, commands, recipes and complaints that pages name, both ways."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from cluster.cli import app
from conf.loading import ConfigError, load_config, shipped_names
from conf.reference import reference

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
KEYS = set(re.findall(r"^\| `([a-z_]+\.[a-z_0-9]+)` \|", reference(), re.M))
SECTIONS = {key.split(".")[0] for key in KEYS}
FILES = (".md", ".zip", ".parquet", ".json", ".jsonl", ".py")
COMPLAINTS = 18


def test_each_complaint_says_how_it_shows_here_and_what_to_do():
    rows = re.findall(r"^\| (\d+)\. (.+?) \| (.+?) \| (.+?) \|$", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
    assert [int(number) for number, *_ in rows] == list(range(1, COMPLAINTS + 1))
    assert all(len(cell) > 15 for _, *cells in rows for cell in cells)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_that_a_page_names_exists(page: Path):
    named = {key for key in re.findall(r"`([a-z]+\.[a-z_0-9]+)(?:=[^`]*)?`", page.read_text()) if key.split(".")[0] in SECTIONS}
    assert sorted(key for key in named - KEYS if not key.endswith(FILES)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_shows_exists(page: Path):
    commands = set(get_command(app).commands)
    shown = set(re.findall(r"(?:^|[`\s(])rethinker ([a-z]+)\b", "\n".join(code(page.read_text()))))
    assert shown <= commands, shown - commands


def code(text: str) -> list[str]:
    """What stands in code, inline or in blocks."""
    return re.findall(r"```sh\n(.*?)```", text, re.S) + re.findall(r"`(rethinker [^`]+)`", text)


def test_every_command_is_on_a_page():
    pages = "\n".join(page.read_text() for page in PAGES)
    missing = [name for name in get_command(app).commands if f"rethinker {name}" not in pages]
    assert missing == []


def test_every_recipe_is_on_its_page_and_loads():
    page = (ROOT / "docs/recipes.md").read_text()
    named = set(re.findall(r"^\| `([a-z0-9_]+)` \|", page, re.M))
    assert named == set(shipped_names()) - {"default"}
    for name in named:
        try:
            load_config(name)
        except ConfigError as error:
            pytest.fail(f"{name}: {error}")
