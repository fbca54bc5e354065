"""Pass rates that are sampled by actors which die: nothing that is known is sampled again, and nobody's prompts are lost."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from cluster import passrate as passrate_module
from cluster.passrate import JOURNAL, passrate
from conf.loading import load_config
from tests.data_fixtures import write_virl39k

POISON = "MMK12-4-never-solved"


class Stage:
    """Runs the command with actors that rate a prompt by its name and die when they are told to."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.rated: list[str] = []
        self.deaths: list[int | None] = [None]  # calls that each actor answers before it dies
        self.successors: list[int | None] = []
        self.poison: set[str] = set()
        self.model = folder / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        write_virl39k(folder / "data")
        monkeypatch.setattr(passrate_module, "RolloutFleet", lambda config, model_path, replay: self)
        monkeypatch.setattr(passrate_module, "ray_session", lambda config: contextlib.nullcontext())

    def _replica(self, index: int, dies_after: int | None) -> SimpleNamespace:
        answered = 0

        async def pass_rates(requests):
            nonlocal answered
            names = [request.prompt.prompt_id for request in requests]
            if self.poison & set(names) or (dies_after is not None and answered >= dies_after):
                raise RuntimeError("the actor is gone")
            answered += 1
            self.rated += names
            return [len(name) % 5 / 4 for name in names]

        return SimpleNamespace(
            name=f"rollout actor {index}", lost=None, actor=SimpleNamespace(pass_rates=SimpleNamespace(remote=pass_rates))
        )

    async def start(self, *, version: int) -> None:
        self.replicas = [self._replica(number, dies_after) for number, dies_after in enumerate(self.deaths)]

    async def add(self) -> SimpleNamespace:
        if not self.successors:
            raise RuntimeError("no room for another one")
        return self._replica(9, self.successors.pop())

    def enlist(self, replica: SimpleNamespace) -> None:
        self.replicas.append(replica)

    def lose(self, replica: SimpleNamespace, reason: str) -> None:
        replica.lost = reason
        self.replicas.remove(replica)

    async def close(self) -> None:
        self.replicas = []

    def run(self) -> int:
        config = load_config("quickstart", ["data.generate=", f"data.path={self.folder}/data", "rollout.prompts_per_call=2"])
        return passrate(config, self.model, self.folder / "out", samples=4)

    @property
    def rates(self) -> dict[str, float | None]:
        table = pq.read_table(self.folder / "out" / "data.parquet")
        return dict(zip(table.column("qid").to_pylist(), table.column("pass_rate").to_pylist(), strict=True))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_what_is_known_when_all_actors_are_dead_is_not_sampled_again(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.deaths = [2, 1]
    assert stage.run() == 1
    assert "no rollout actor is left" in capsys.readouterr().out
    known = list(stage.rated)
    assert len(known) == 6
    stage.deaths = [None]
    assert stage.run() == 0
    assert len(stage.rated) == len(set(stage.rated)) and stage.rated[:6] == known
    assert {name for name, rate in stage.rates.items() if rate is not None} == set(stage.rated)
    assert stage.run() == 0
    assert "nothing left to do" in capsys.readouterr().out


def test_a_dead_actor_is_replaced(stage: Stage) -> None:
    stage.deaths, stage.successors = [1], [None, 2]
    assert stage.run() == 0
    assert len(stage.rated) == len(set(stage.rated)) and not stage.successors


def test_prompts_that_actors_die_of_are_named_and_not_rated(stage: Stage) -> None:
    stage.poison, stage.successors = {POISON}, [None] * 9
    assert stage.run() == 0
    lines = (stage.folder / "out" / JOURNAL).read_text()
    assert "3 rollout actors died while answering it" in lines
    assert stage.rates[POISON] is None and sum(rate is None for rate in stage.rates.values()) <= 3  # its call's other prompt, a bad row
