"""What a resumed run may change."""

import pytest

from cluster.compatibility import check_resumable
from conf.loading import ConfigError, load_config, resolved_yaml


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(resolved_yaml(load_config("quickstart")))
    return path


@pytest.mark.parametrize(
    "word",
    ["run.num_steps=500", "run.resume=true", "rollout.num_actors=2", "cluster.num_cpus=8", "replay.timeout_s=5"],
)
def test_where_and_how_long_may_change(stored, word):
    check_resumable(stored, load_config("quickstart", [word]))


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("learner.learning_rate=0.5", "learner.learning_rate"),
        ("run.seed=7", "run.seed"),
        ("learner.num_ranks=2", "learner.num_ranks"),
        ("replay.mode=fresh", "replay.mode"),
        ("rollout.temperature=0.5", "rollout.temperature"),
        ("data.categories=[digits]", "data.categories"),
    ],
)
def test_what_is_trained_may_not(stored, word, key):
    with pytest.raises(ConfigError, match=rf"{key} is .* has"):
        check_resumable(stored, load_config("quickstart", [word]))
