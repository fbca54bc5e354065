"""The learner's weights out of DeepSpeed ZeRO 0-3 on two ranks: whole, under the checkpoint's names, bit for bit."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TIMEOUT_S = 500
CASES = {
    f"zero{stage}-{'tied' if tied else 'untied'}": {"stage": stage, "tied": tied, "dtype": "float32"}
    for stage in (0, 1, 2, 3)
    for tied in (True, False)
} | {"zero3-bfloat16": {"stage": 3, "tied": True, "dtype": "bfloat16"}}


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks sent in every case, a folder each; one start of the group serves all cases."""
    folder = tmp_path_factory.mktemp("sent")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    cases = [{"name": name, **case} for name, case in CASES.items()]
    ranks = [
        subprocess.Popen(
            [
                sys.executable, "-m", "tests.integration.weight_source_rank",
                json.dumps({"rank": rank, "world_size": 2, "port": port, "folder": str(folder), "cases": cases}),
            ],
            cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for process in ranks:
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in ranks:
            process.kill()
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_send_what_they_train(sent: Path, name: str) -> None:
    files = sorted((sent / name).glob("*.safetensors"))
    tensors = {tensor_name: tensor for path in files for tensor_name, tensor in load_file(path).items()}
    expected = torch.load(sent / name / "expected.pt")
    tied = CASES[name]["tied"]
    assert ("lm_head.weight" in tensors) is not tied
    if tied:
        expected.pop("lm_head.weight", None)
    assert len(files) > 1, "several buckets"
    assert tensors.keys() == expected.keys()
    for tensor_name, tensor in expected.items():
        assert tensor.dtype == getattr(torch, str(CASES[name]["dtype"]))
        assert torch.equal(tensors[tensor_name], tensor), tensor_name
