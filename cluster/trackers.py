"""Trackers that a run reports to besides its own folder: the metric sinks behind the extras [wandb] and [mlflow].

Owns how a run is called there and how a resumed one goes on. Keys and passwords are theirs to read from the environment; none passes here.
"""

from __future__ import annotations

import os
import secrets
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from cluster.metrics import JsonLines, MetricSink, MetricSinks, RayMetrics, TensorBoard
from cluster.run_folder import RunFolder
from conf.loading import ConfigError, resolved_yaml
from conf.schema import Config, Tracker

PARAMETERS_PER_CALL = 100  # MLflow takes no more
PACKAGES = {Tracker.wandb: "wandb", Tracker.mlflow: "mlflow"}


def check_trackers(config: Config) -> None:
    """Refuse trackers whose package is not installed, before anything starts.

    Args:
        config: of the run.

    Raises:
        ConfigError: naming the extra that brings it.
    """
    for tracker in config.report.trackers:
        package = PACKAGES.get(tracker)
        if package is not None and find_spec(package) is None:
            raise ConfigError(
                f"report.trackers names {tracker.value}, but the package {package} is not installed; pip install 'rethinker[{package}]'"
                " brings it."
            )


def open_sinks(config: Config, folder: RunFolder, *, step: int) -> MetricSinks:
    """Open every place that takes the run's step metrics.

    Args:
        config: of the run.
        folder: of the run.
        step: steps done before.

    Returns:
        The run folder's file, Ray's metrics and what report.trackers names.
    """
    sinks: list[MetricSink] = [JsonLines(folder.metrics), RayMetrics(config.run.name)]
    settings = yaml.safe_load(resolved_yaml(config))
    for tracker in config.report.trackers:
        if tracker is Tracker.tensorboard:
            sinks.append(TensorBoard(folder.tensorboard, step=step))
        elif tracker is Tracker.wandb:
            sinks.append(WeightsAndBiases(folder.path, run=config.run.name, project=config.report.project, settings=settings))
        elif tracker is Tracker.mlflow:
            uri = config.report.mlflow_uri or None
            sinks.append(MLflow(folder.path, run=config.run.name, experiment=config.report.project, settings=settings, uri=uri))
    return MetricSinks(sinks)


class WeightsAndBiases:
    """A run at Weights & Biases; WANDB_MODE=offline keeps it in the run folder.

    Args:
        folder: of the run, where wandb keeps its files and we the run's id, so that a resumed run goes on there.
        run: its name.
        project: that it belongs to.
        settings: shown with it.
    """

    def __init__(self, folder: Path, *, run: str, project: str, settings: dict[str, Any]) -> None:
        import wandb

        kept = folder / "wandb-id.txt"
        if not kept.exists():
            kept.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project=project, name=run, id=kept.read_text().strip(), resume="allow", dir=str(folder), config=settings, reinit="create_new"
        )

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Log a step; steps that a resumed run does again are logged once only, which is wandb's rule."""
        self._run.log(metrics, step=step)

    def close(self) -> None:
        """Wait until everything is written or sent."""
        self._run.finish()


class MLflow:
    """A run of an MLflow experiment.

    Args:
        folder: of the run, where we keep the id of MLflow's run, so that a resumed run goes on there.
        run: its name.
        experiment: that it belongs to.
        settings: shown as its parameters, section.key by section.key.
        uri: of the tracking server or store; None: MLFLOW_TRACKING_URI, else a store in the run folder.
    """

    def __init__(self, folder: Path, *, run: str, experiment: str, settings: dict[str, Any], uri: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        kept = folder / "mlflow-id.txt"
        if not kept.exists():
            found = self._client.get_experiment_by_name(experiment)
            number = self._client.create_experiment(experiment) if found is None else found.experiment_id
            kept.write_text(self._client.create_run(number, run_name=run).info.run_id)
            parameters = [Param(f"{section}.{key}", str(value)) for section, values in settings.items() for key, value in values.items()]
            for start in range(0, len(parameters), PARAMETERS_PER_CALL):
                self._client.log_batch(kept.read_text(), params=parameters[start : start + PARAMETERS_PER_CALL])
        self._run_id = kept.read_text()
        self._client.update_run(self._run_id, status="RUNNING")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Log a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, [Metric(name, float(value), now, step) for name, value in metrics.items()])

    def close(self) -> None:
        """Tell that the run is not under way."""
        self._client.set_terminated(self._run_id)
