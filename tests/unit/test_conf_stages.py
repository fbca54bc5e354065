import pytest

from conf.checks import check
from conf.loading import ConfigError, load_config, resolved_yaml
from conf.schema import Config
from conf.stages import plan_stages, total_steps

TWO = "run.stages=['name=first steps=4','name=second steps=2 rethinking.enabled=true algorithm.clip_high=0.5']"


def load(*overrides: str) -> Config:
    return load_config("quickstart", overrides)


def test_without_stages_the_run_is_one() -> None:
    (stage,) = plan_stages(load("run.num_steps=7"))
    assert (stage.name, stage.first_step, stage.last_step) == ("", 0, 7)
    assert stage.config == load("run.num_steps=7")


def test_stages_follow_each_other_under_their_own_settings() -> None:
    config = load(TWO)
    first, second = plan_stages(config)
    assert [(s.name, s.first_step, s.last_step) for s in (first, second)] == [("first", 0, 4), ("second", 4, 6)]
    assert (first.config.rethinking.enabled, second.config.rethinking.enabled) == (False, True)
    assert (first.config.algorithm.clip_high, second.config.algorithm.clip_high) == (0.35, 0.5)
    assert first.config.run.num_steps == second.config.run.num_steps == total_steps(config) == 6  # one schedule of the learning rate


def test_a_stage_by_itself_begins_at_step_0() -> None:
    (stage,) = plan_stages(load(TWO, "run.stage=second"))
    assert (stage.first_step, stage.last_step, stage.config.rethinking.enabled) == (0, 2, True)


def test_stages_survive_a_round_trip(tmp_path) -> None:
    (path := tmp_path / "run.yaml").write_text(resolved_yaml(load(TWO)))
    assert plan_stages(load_config(str(path))) == plan_stages(load(TWO))


def test_every_stage_is_checked() -> None:
    check(load(TWO), paths=False)
    with pytest.raises(ConfigError, match=r"rethinking\.fraction = 2"):
        check(load("run.stages=['name=a steps=1','name=b steps=1 rethinking.fraction=2']"), paths=False)


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ("['steps=4']", "needs a name"),
        ("['name=a']", "number of steps"),
        ("['name=a steps=0']", "number of steps"),
        ("['name=a steps=x']", "number of steps"),
        ("['name=a steps=1','name=a steps=2']", "two stages of one name"),
        ("['name=a steps=1 rethinking.enable=true']", "did you mean"),
        ("['name=a steps=1 replay.mode=none']", "replay.mode"),
        ("['name=a steps=1 model.max_pixels=9999']", "the same for the whole run"),
        ("['name=a steps=1 algorithm.prompts_per_step=3']", "algorithm.prompts_per_step"),
    ],
)
def test_what_a_stage_cannot_be_is_told(stages: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plan_stages(load(f"run.stages={stages}"))


@pytest.mark.parametrize("words", [[TWO, "run.stage=third"], ["run.stage=first"]])
def test_an_unknown_stage_is_told(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"run\.stage = "):
        plan_stages(load(*words))
