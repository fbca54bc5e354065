import subprocess
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.run_folder import RunFolderError
from conf.loading import load_config
from conf.schema import Config
from tasks.errors import DataError

ROOT = Path(__file__).parents[2]
RUNNER = CliRunner()


@pytest.mark.parametrize(
    "command",
    [
        ["train"],
        ["submit"],
        ["evaluate"],
        ["coldstart"],
        ["curves"],
        ["config"],
        *(["data", name] for name in ("build", "check", "select", "passrate")),
    ],
    ids=" ".join,
)
def test_every_command_explains_itself_with_an_example(command: list[str]) -> None:
    result = RUNNER.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert f"  rethinker {' '.join(command)} " in result.output
    assert len(result.output.splitlines()) > 10


def test_the_root_help_lists_the_commands() -> None:
    result = RUNNER.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(f"  {name} " in result.output for name in ("train", "evaluate", "coldstart", "curves", "data", "config"))
    assert "rethinker train quickstart" in result.output


def test_version() -> None:
    assert RUNNER.invoke(app, ["--version"]).output.startswith("rethinker ")


def test_config_prints_what_loads_to_the_same_settings(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["config", "quickstart", "run.seed=5"])
    assert result.exit_code == 0
    written = tmp_path / "printed.yaml"
    written.write_text(result.stdout)
    assert load_config(str(written)) == load_config("quickstart", ["run.seed=5"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "quickstart", "replay.modes=fresh"], ["replay.modes", "'fresh'", "replay.mode?"]),
        (["train", "quickstart", "run.seed=x"], ["run.seed", "'x'"]),
        (["train", "quickstart", "run.seed"], ["'run.seed'", "key=value"]),
        (["train", "nowhere.yaml"], ["'nowhere.yaml'"]),
        (["train", "quickstart", "rollout.prompts_per_call=99"], ["rollout.prompts_per_call = 99", "algorithm.prompts_per_step = 64"]),
        (["train", "quickstart", "cluster.num_cpus=1"], ["cluster.num_cpus = 1", "rollout.num_actors = 1"]),
        (["train", "default"], ["data.path = ''"]),
        (["submit", "quickstart"], ["run.dir = 'runs/quickstart'", "absolute path"]),
        (["evaluate", "quickstart", "--model", "nowhere"], ["--model 'nowhere'", "config.json"]),
        (["evaluate", "quickstart", "run.dir=nowhere"], ["run.dir = 'nowhere'", "no trained model"]),
        (["evaluate", "quickstart", "evaluation.benchmarks=[mmmu]", "evaluation.benchmarks_dir=nowhere"], ["'nowhere'", "['mmmu']"]),
        (["evaluate", "quickstart", "evaluation.token_limits=[0]", "--rescore"], ["evaluation.token_limits = [0]", "below 1"]),
        (["evaluate", "quickstart", "--rescore", "--output", "nowhere"], ["nowhere holds no evaluation"]),
        (["evaluate", "quickstart", "data.generate=", "data.test_path=", f"data.path={ROOT}"], ["data.test_path = ''"]),
        (["coldstart", "quickstart", "coldstart.steps=0"], ["coldstart.steps = 0", "model.path = ''"]),
        (["curves", "nowhere"], ["nowhere", "no metrics.jsonl"]),
        (["config", "quickstart", "learner.zero_stage=9", "--check"], ["learner.zero_stage = 9", "0 to 3"]),
        (["data", "build", "imagenet"], ["'imagenet'", "quickstart"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_cannot_be_run_is_one_sentence_and_exit_code_2(arguments: list[str], named: list[str]) -> None:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("rethinker: ")
    assert result.stderr.count("\n") == 1
    assert all(part in result.stderr for part in named), result.stderr


def test_a_refusal_comes_before_ray_is_even_imported() -> None:
    program = (
        "import sys; from cluster.cli import app\n"
        "try: app(['train', 'quickstart', 'run.seed=x'])\n"
        "except SystemExit as end: print(end.code, [name for name in ('ray', 'torch', 'vllm') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "2 []"
    assert "Traceback" not in result.stderr


def test_python_m_cluster_is_the_same_command() -> None:
    result = subprocess.run([sys.executable, "-m", "cluster", "train", "nowhere"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("rethinker: There is no configuration file 'nowhere'")


def replace_module(monkeypatch: pytest.MonkeyPatch, name: str, **functions: object) -> None:
    module = types.ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(0, 0), (1, 1), (KeyboardInterrupt(), 130), (DataError("no Parquet file in 'x'"), 2), (RunFolderError("'x' holds a run"), 2)],
    ids=["done", "failed", "interrupted", "bad data", "taken folder"],
)
def test_train_hands_over_the_settings_and_exits_with_the_outcome(
    outcome: int | BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Config] = []

    def train(config: Config) -> int:
        received.append(config)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    replace_module(monkeypatch, "cluster.train", train=train)
    result = RUNNER.invoke(app, ["train", "quickstart", "run.seed=3", "resume=true"])
    assert result.exit_code == code
    assert received == [load_config("quickstart", ["run.seed=3", "run.resume=true"])]
    if code == 2:
        assert result.stderr == f"rethinker: {outcome}\n"


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: Config) -> int:
        raise ValueError("a bug")

    replace_module(monkeypatch, "cluster.train", train=train)
    assert isinstance(RUNNER.invoke(app, ["train", "quickstart"]).exception, ValueError)


def test_evaluate_defaults_to_the_run_s_own_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    received: list[object] = []

    def evaluate(config: Config, model_path: Path, output: Path) -> int:
        received.extend([model_path, output])
        return 0

    def rescore(config: Config, output: Path) -> int:
        received.append(output)
        return 0

    replace_module(monkeypatch, "cluster.evaluate", evaluate=evaluate)
    replace_module(monkeypatch, "cluster.rescore", rescore=rescore)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert RUNNER.invoke(app, ["evaluate", "quickstart", f"run.dir={tmp_path}"]).exit_code == 0
    assert RUNNER.invoke(app, ["evaluate", "quickstart", "--model", str(tmp_path), "--output", "other"]).exit_code == 0
    assert RUNNER.invoke(app, ["evaluate", "quickstart", f"run.dir={tmp_path}", "--rescore"]).exit_code == 0
    assert received == [tmp_path / "model", tmp_path / "evaluation", tmp_path / "model", Path("other"), tmp_path / "evaluation"]


def test_a_checkpoint_without_model_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint" / "step-000004").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "checkpoint", tmp_path / "checkpoint" / "step-000004"):
        (folder / "controller.json").touch()
        result = RUNNER.invoke(app, ["evaluate", "quickstart", "--model", str(folder)])
        assert result.exit_code == 2 and "kept no model files" in result.stderr and "run.resume=true" in result.stderr


def test_coldstart_prints_the_model_s_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_module(monkeypatch, "cluster.coldstart", run=lambda config: Path("folder") / str(config.coldstart.steps))
    result = RUNNER.invoke(app, ["coldstart", "quickstart", "coldstart.steps=70"])
    assert (result.exit_code, result.stdout) == (0, "folder/70\n")


def test_data_build_refuses_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "precious.txt").write_text("mine")
    result = RUNNER.invoke(app, ["data", "build", "quickstart", "--folder", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert str(tmp_path) in result.stderr
    assert (tmp_path / "train" / "precious.txt").read_text() == "mine"


def test_curves_of_one_run_and_of_several(tmp_path: Path) -> None:
    for name in ("none", "episode"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "effective_query_ratio": 0.5}\n')
    runs = [str(tmp_path / name) for name in ("none", "episode")]
    for chosen in (runs[:1], runs):
        picture = tmp_path / "pictures" / f"{len(chosen)}.png"
        assert RUNNER.invoke(app, ["curves", *chosen, "--output", str(picture)]).exit_code == 0
        assert picture.read_bytes()[:4] == b"\x89PNG"
    twice = RUNNER.invoke(app, ["curves", runs[0], runs[0]])
    assert twice.exit_code == 2 and "one name" in twice.output
