"""Data and a tiny model that make a whole run possible on a laptop, without downloads.

Must not know Ray, vLLM or DeepSpeed.
"""

from __future__ import annotations

import os
from pathlib import Path

from conf.schema import DataConfig
from tasks.quickstart.data import QuickstartData, build_data

__all__ = ["QuickstartData", "build_data", "build_tiny_model"]


def build_tiny_model(folder: str | os.PathLike[str], seed: int = 1, *, prompt_suffix: str = DataConfig.prompt_suffix) -> Path:
    """Make the quickstart's model folder; see tasks.quickstart.model, whose heavy imports wait until it is called."""
    from tasks.quickstart.model import build_tiny_model as build

    return build(folder, seed, prompt_suffix=prompt_suffix)
