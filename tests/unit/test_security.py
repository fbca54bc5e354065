"""What docs/security.md promises of defaults, files and secrets; what it promises of tokens is tested in integration/test_submission."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
import ray
import torch
import yaml
from safetensors.torch import load_file

from actors.engine.settings import engine_arguments
from cluster import session
from cluster.run_folder import RunFolder, write_atomically
from conf.loading import ConfigError, load_config, resolved_yaml, shipped_names
from conf.schema import Device, ModelConfig, RolloutConfig
from learner.policy import PolicyModel

SECRET = "sk-do-not-tell-0123456789"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", shipped_names())
def test_no_shipped_configuration_runs_code_of_a_model_or_opens_a_dashboard(name):
    config = load_config(name)
    assert config.model.trust_remote_code is False
    assert config.cluster.dashboard_host == "127.0.0.1"


def test_a_local_cluster_s_dashboard_listens_where_the_configuration_says(monkeypatch):
    asked = []
    monkeypatch.setattr(ray, "init", lambda **settings: asked.append(settings))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for words in ([], ["cluster.dashboard_host=0.0.0.0"]):
        with session.connected(load_config("quickstart", words)):
            pass
    assert [settings["dashboard_host"] for settings in asked] == ["127.0.0.1", "0.0.0.0"]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_an_engine_loads_safetensors_only_and_no_code(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    told = engine_arguments(str(tmp_path), model=ModelConfig(), rollout=RolloutConfig(), device=Device.gpu, seed=1, worker_extension=None)
    assert told["load_format"] == "safetensors" and told["trust_remote_code"] is False


def test_the_learner_refuses_pickled_weights(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    for path in folder.glob("*.safetensors"):
        torch.save(load_file(path), folder / "pytorch_model.bin")
        path.unlink()
    with pytest.raises(OSError, match="safetensors"):
        PolicyModel.load(folder, dtype=torch.float32, temperature=1.0)


def test_a_run_folder_is_closed_to_others_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        folder = RunFolder(tmp_path / "runs" / "one")
        folder.open(resume=False, overwrite=False)
        write_atomically(folder.config, "run: {}\n")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.path.stat().st_mode) & stat.S_IRWXO == 0  # so what lies in it can't be reached by others
    assert not folder.path.stat().st_mode & stat.S_IWGRP


@pytest.mark.parametrize("word", ["report.project=${oc.env:WANDB_API_KEY}", "run.stages=['name=${oc.env:WANDB_API_KEY} steps=1']"])
def test_settings_never_hold_what_the_environment_holds(word, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with pytest.raises(ConfigError, match=r"oc\.env") as refusal:
        load_config("quickstart", [word])
    assert SECRET not in str(refusal.value)


def test_the_resolved_configuration_holds_no_secret_of_the_environment(monkeypatch):
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    assert SECRET not in resolved_yaml(load_config("quickstart"))


def test_every_shipped_way_to_start_a_cluster_asks_for_a_token():
    for path in sorted((ROOT / "cluster/kubernetes").glob("ray*.yaml")):
        (manifest,) = [part for part in yaml.safe_load_all(path.read_text()) if part["kind"] in ("RayJob", "RayCluster")]
        spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
        assert spec["authOptions"] == {"mode": "token"}, path.name
    script = (ROOT / "cluster/slurm/rethinker.sbatch").read_text()
    assert "RAY_AUTH_MODE=token" in script and "umask 077" in script


def test_the_page_on_security_names_every_promise():
    page = (ROOT / "docs/security.md").read_text()
    for words in ("RAY_AUTH_MODE=token", "trust_remote_code", "safetensors", "loopback", "0750", "cluster.dashboard_host", "oc.env"):
        assert words in page, words
