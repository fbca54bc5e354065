"""vLLM's temporary files lie in one folder that goes with the engine."""

import os
import tempfile
from pathlib import Path

import pytest

from actors.engine import launch


def test_vllm_finds_the_folder_while_it_starts_and_nobody_else_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "before")
    monkeypatch.setenv("TMPDIR", "/tmp")
    python = tempfile.gettempdir()
    with launch._temporary_files_in(tmp_path):
        assert tempfile.gettempdir() == os.environ["TMPDIR"] == os.environ["VLLM_RPC_BASE_PATH"] == str(tmp_path)
    assert (tempfile.gettempdir(), os.environ["TMPDIR"]) == (python, "/tmp")


def test_a_temporary_folder_that_was_not_named_is_not_named_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "before")
    monkeypatch.delenv("TMPDIR", raising=False)
    with launch._temporary_files_in(tmp_path):
        assert os.environ["TMPDIR"] == str(tmp_path)
    assert "TMPDIR" not in os.environ


@pytest.mark.parametrize(("length", "stays"), [(40, True), (44, True), (45, False), (90, False)])
def test_a_temporary_folder_is_used_while_a_socket_fits_below_it(length: int, stays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    root = "/" + "t" * (length - 1)
    monkeypatch.setattr(tempfile, "tempdir", root)
    assert launch._folder_root() == Path(root if stays else "/tmp")
    if stays:
        assert len(f"{root}/rethinker-engine-12345678/01234567-0123-0123-0123-0123456789ab") <= 107
