"""The environment can import torchvision, and lets vLLM inspect Qwen2.5-VL, in every process."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_HOOK = "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if finder.__module__ != 'torchvision_ops']\n"
INSPECT = """
from vllm.model_executor.models.registry import ModelRegistry
if __name__ == "__main__":
    print(ModelRegistry.models["Qwen2_5_VLForConditionalGeneration"].inspect_model_cls().supports_multimodal)
"""


def run(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **variables}
    )


def test_torchvision_and_torchaudio_import_in_this_and_in_a_spawned_process() -> None:
    program = (
        "import multiprocessing\n"
        "print(multiprocessing.get_context('spawn').Pool(1).apply(exec, ('import torchaudio, torchvision',)))\n"
        "import torchaudio, torchvision\n"
    )
    result = run(program)
    assert (result.returncode, result.stdout.strip()) == (0, "None"), result.stderr


def test_without_the_hook_torchvision_does_not_import() -> None:
    try:
        importlib.metadata.version("torchvision-ops")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("this environment's torchvision needs no hook")
    assert "operator torchvision::nms does not exist" in run(f"{WITHOUT_HOOK}import torchvision").stderr


@pytest.mark.long  # every engine that starts without vLLM's cache does this
def test_vllm_inspects_qwen_in_its_subprocess(tmp_path: Path) -> None:
    program = tmp_path / "inspect_qwen.py"
    program.write_text(INSPECT)
    result = run(
        f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')", VLLM_CACHE_ROOT=str(tmp_path)
    )  # a cached answer proves nothing
    assert result.stdout.strip().splitlines()[-1:] == ["True"], result.stderr
