import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from conf.loading import CONF_DIR, ConfigError, config_hash, load_config, resolved_yaml, shipped_names
from conf.schema import Config, Dtype, ReplayMode

SHIPPED = sorted([*CONF_DIR.glob("*.yaml"), *CONF_DIR.glob("experiment/*.yaml")])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_file_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(str(path))
    written = tmp_path / "resolved.yaml"
    written.write_text(resolved_yaml(config))
    assert load_config(str(written)) == config
    assert config.run.dir == f"runs/{config.run.name}"


def test_the_default_file_changes_no_default() -> None:
    assert config_hash(load_config("default")) == config_hash(dataclasses.replace(load_config("default")))
    expected = dataclasses.asdict(Config())
    expected["run"]["dir"] = "runs/run"
    assert dataclasses.asdict(load_config("default")) == expected


def test_a_shipped_file_is_found_by_name_and_by_path() -> None:
    assert {"default", "quickstart"} <= set(shipped_names())
    assert load_config("quickstart") == load_config(str(CONF_DIR / "experiment" / "quickstart.yaml"))


def test_overrides_win_over_the_file_the_file_over_its_base_and_the_base_over_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "grandparent.yaml").write_text("run: {seed: 2, num_steps: 3, name: old}\nmodel: {dtype: float32}\n")
    (tmp_path / "parent.yaml").write_text("base: grandparent.yaml\nrun:\n  num_steps: 4\n  name: middle\n")
    (tmp_path / "child.yaml").write_text("base: parent.yaml\nrun:\n  name: new\n")
    config = load_config(str(tmp_path / "child.yaml"), ["run.name=newest", "replay.mode=fresh"])
    assert (config.run.seed, config.run.num_steps, config.run.name, config.run.dir) == (2, 4, "newest", "runs/newest")
    assert config.model.dtype is Dtype.float32
    assert config.replay.mode is ReplayMode.fresh
    assert config.algorithm == Config().algorithm


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("learner.learning_rate=1e-5", "learner.learning_rate", 1e-5),
        ("learner.betas=[0.8,0.9]", "learner.betas", (0.8, 0.9)),
        ("data.sources=[a,b]", "data.sources", ["a", "b"]),
        ("algorithm.batch_size=null", "algorithm.batch_size", None),
        ("algorithm.batch_size=32", "algorithm.batch_size", 32),
        ("run.resume=true", "run.resume", True),
        ("resume=true", "run.resume", True),  # only one section has it
        ("run.name=007", "run.name", "007"),
        ("run.name=a=b", "run.name", "a=b"),
        ("model.path=", "model.path", ""),
        ("data.prompt_suffix=Answer: [", "data.prompt_suffix", "Answer: ["),
        ("run.name='quoted'", "run.name", "quoted"),
        ("run.dir=out/${run.seed}", "run.dir", "out/1"),
        ("run={seed: 5}", "run.seed", 5),
    ],
)
def test_override(word: str, key: str, value: object) -> None:
    section, name = key.split(".")
    assert getattr(getattr(load_config("default", [word]), section), name) == value


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("run.seed", ["'run.seed'", "key=value"]),
        ("=3", ["'=3'", "key=value"]),
        ("algorithm.batchsize=3", ["algorithm.batchsize", "3", "did you mean algorithm.batch_size?"]),
        ("replay.modes=x", ["replay.modes", "'x'", "did you mean replay.mode?"]),
        ("learner.top_p=0.9", ["learner.top_p", "0.9", "did you mean rollout.top_p?"]),
        ("run.name.x=1", ["run.name.x", "1"]),
        ("zzz=1", ["zzz", "1", "sections are run, model"]),
        ("timeout_s=1", ["timeout_s", "rollout.timeout_s", "replay.timeout_s"]),
        ("run=3", ["run = 3", "run.name"]),
        ("run.seed=abc", ["run.seed", "'abc'", "a whole number"]),
        ("run.seed=1.5", ["run.seed", "1.5", "a whole number"]),
        ("run.seed=null", ["run.seed", "None", "a whole number"]),
        ("run.name=null", ["run.name", "None", "a text"]),
        ("run.resume=maybe", ["run.resume", "'maybe'", "true or false"]),
        ("learner.learning_rate=fast", ["learner.learning_rate", "'fast'", "a number"]),
        ("replay.mode=best", ["replay.mode", "'best'", "none, filter, episode, fifo, fresh"]),
        ("algorithm.batch_size=many", ["algorithm.batch_size", "'many'", "a whole number or null"]),
        ("data.sources=one", ["data.sources", "'one'", "a list of texts"]),
        ("learner.betas=[0.9]", ["learner.betas", "[0.9]", "2 numbers"]),
        ("algorithm.batch_size=[1", ["algorithm.batch_size", "'[1'"]),
        ("run.dir=${no.such}", ["run.dir", "${no.such}"]),
    ],
)
def test_a_wrong_override_is_one_sentence_that_names_key_and_value(word: str, named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("default", [word])
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in named), message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("run:\n  seed: [1\n", ["bad.yaml", "line 3"]),
        ("run:\n  seed: 1\n  seed: 2\n", ["bad.yaml", "line 3", "seed"]),
        ("- run\n- model\n", ["bad.yaml", "list"]),
        ("run:\n  sed: 1\n", ["bad.yaml", "run.sed", "did you mean run.seed?"]),
        ("run:\n  seed: x\n", ["bad.yaml", "run.seed", "'x'", "a whole number"]),
        ("run: 3\n", ["bad.yaml", "run = 3"]),
        ("base: missing.yaml\n", ["bad.yaml", "base", "missing.yaml"]),
        ("base: bad.yaml\n", ["bad.yaml", "base", "leads back"]),
        ("base: [a]\n", ["bad.yaml", "base", "['a']"]),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_file_and_place(text: str, named: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in named), message


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00run")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(str(path))


def test_a_missing_file_is_named_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"'nope\.yaml'.*default, quickstart"):
        load_config("nope.yaml")


def test_a_section_with_all_lines_commented_out_keeps_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("run:\n#  seed: 3\n")
    assert load_config(str(path)).run.seed == Config().run.seed


def test_the_result_is_frozen() -> None:
    config = load_config("quickstart")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.run.seed = 2  # type: ignore[misc]


def test_hashes_follow_the_content_alone() -> None:
    base, same, other = load_config("quickstart"), load_config("quickstart"), load_config("quickstart", ["coldstart.steps=7"])
    assert config_hash(base) == config_hash(same) != config_hash(other)
    assert config_hash(base.model) == config_hash(other.model)
    assert config_hash(base.coldstart, base.model) != config_hash(other.coldstart, other.model)
    with pytest.raises(TypeError, match="dict"):
        config_hash({})


@pytest.mark.parametrize("module", ["conf.checks", "cluster.cli"])
def test_importing_pulls_in_nothing_heavy(module: str) -> None:
    heavy = ["ray", "torch", "vllm", "deepspeed", "transformers", "matplotlib"]
    program = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=CONF_DIR.parent)
    assert result.stdout.strip() == "[]"
