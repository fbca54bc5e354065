"""The ``rethinker`` command.

Owns words, help texts and exit codes: 0 done, 1 failed, 2 asked for something that cannot be run (one sentence on standard error, before
any actor starts), 130 interrupted. Ray and the engines are imported by the commands that need them, so that help is instant.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli_words import AddressOption, ConfigArgument, OverridesArgument, RunArgument, checked, example, refusals
from cluster.data_commands import data_app
from cluster.ending import INTERRUPTED_EXIT_CODE, leave
from cluster.model_folder import model_folder
from cluster.run_folder import RunFolderError
from conf.checks import check, check_evaluation, check_scoring
from conf.loading import ConfigError, load_config, resolved_yaml

app = typer.Typer(
    name="rethinker",
    help=(
        "Train a vision-language model with GRPO and Selective Sample Replay on a Ray cluster.\n\n"
        "Start with 'rethinker train quickstart': it builds its own data and model and needs two CPU cores and a quarter of an hour."
    ),
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        version = importlib.metadata.version("rethinker")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree, as a Ray job is
        version = "(not installed)"
    typer.echo(f"rethinker {version}")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command(
    epilog=example(
        "rethinker train quickstart",
        "rethinker train my.yaml run.name=second run.seed=2 replay.mode=fresh",
        "rethinker train my.yaml run.name=second run.resume=true",
    )
)
def train(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """Train, from cold start to the final evaluation.

    Results go into the run folder (run.dir): config.yaml, metrics.jsonl, summary.json, curves.png, TensorBoard events, trajectories/,
    checkpoint/ and model/. Ctrl-C stops the run; run.resume=true goes on from the newest checkpoint.
    """
    with refusals():
        settings = checked(config, overrides)
        from cluster.train import train as run_training

        raise typer.Exit(run_training(settings))


@app.command(
    epilog=example(
        "rethinker evaluate quickstart",
        "rethinker evaluate benchmarks evaluation.benchmarks_dir=/data/benchmarks --model models/Qwen2.5-VL-7B-Instruct --output qwen",
        "rethinker evaluate benchmarks --rescore --output qwen",
    )
)
def evaluate(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A Hugging Face folder, a run folder, or a run's checkpoint; without it, the run's model.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The evaluation's folder; without it, evaluation/ in the run folder.", show_default=False)
    ] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Only score the answers in the folder anew and report; needs neither model nor data.")
    ] = False,
) -> None:
    """Measure a model on benchmarks, or on the held-out questions of data.test_path.

    Answers are sampled greedily on the rollout actors and kept as Parquet, then scored. The folder gets report.md and report.json: strict
    and lenient accuracy with confidence intervals, what was cut off, what could not be scored and why. The same command again asks only
    what has no answer yet. evaluation.benchmarks names what is asked, evaluation.token_limits how long an answer may be.
    """
    with refusals():
        settings = load_config(config, overrides or [])
        run_dir = Path(settings.run.dir)
        folder = output or run_dir / "evaluation"
        if rescore:
            check_scoring(settings)
            from cluster.rescore import rescore as run_scoring

            raise typer.Exit(run_scoring(settings, folder))
        check_evaluation(settings)
        model_path = model_folder(model, run_dir, trust_remote_code=settings.model.trust_remote_code, say=typer.echo)
        from cluster.evaluate import evaluate as run_evaluation

        raise typer.Exit(run_evaluation(settings, model_path, folder))


@app.command(
    epilog=example(
        "rethinker submit vl_rethinker_7b run.dir=/shared/runs/first --address http://HEAD:8265",
        "rethinker submit my.yaml run.dir=/shared/runs/second run.seed=2 --follow",
    )
)
def submit(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    address: Annotated[
        str | None,
        typer.Option(help="Of the cluster's dashboard; without it, RAY_API_SERVER_ADDRESS or RAY_ADDRESS.", show_default=False),
    ] = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(
            help="A folder with the code that the job brings along; without it, the current one or the command's own.", show_default=False
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Print what the job prints, and end with its exit code.")] = False,
) -> None:
    """Train on a cluster, as a Ray job that outlives this command.

    The job runs 'train' on the head, with the code of the working directory. Data, models and the run folder are paths on the cluster;
    run.dir must be an absolute one that every node sees. 'rethinker status RUN' asks the run how it is, 'rethinker stop RUN' ends it after
    the step under way with a checkpoint, and the same 'submit' again goes on from the newest one. A cluster with token authentication wants
    RAY_AUTH_MODE=token and its token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.
    """
    with refusals():
        settings = load_config(config, overrides or [])
        check(settings, paths=False)
        from cluster.submission import submit as run_submission

        raise typer.Exit(run_submission(settings, config, overrides or [], address=address, working_dir=working_dir, follow=follow))


def _through_dashboard(address: str | None, *words: str) -> None:
    """Let the cluster's head run a command, where only its dashboard is in reach."""
    if address is not None and address.startswith(("http://", "https://")):
        from cluster.submission import ask

        raise typer.Exit(ask(words, address))


@app.command(epilog=example("rethinker status runs/mine", "rethinker status mine --address 10.0.0.1:6379 --json"))
def status(
    run: RunArgument,
    address: AddressOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Tell how a running run is: phase, step, every role's state, what died last and of what."""
    with refusals():
        _through_dashboard(address, "status", run, *(["--json"] if as_json else []))
        from cluster.run_commands import status_command

        status_command(run, address, as_json=as_json)


@app.command(epilog=example("rethinker scale runs/mine --rollouts 8", "rethinker scale runs/mine --rollouts 0"))
def scale(
    run: RunArgument,
    rollouts: Annotated[int, typer.Option(min=0, help="Rollout actors that the run is to have.", show_default=False)],
    address: AddressOption = None,
) -> None:
    """Change the number of a running run's rollout actors.

    Newcomers serve after a completed weight sync; those that leave finish their prompts first. With 0 the run goes on with what replay
    has, waits, and continues when there are some again.
    """
    with refusals():
        _through_dashboard(address, "scale", run, "--rollouts", str(rollouts))
        from cluster.run_commands import scale_command

        typer.echo(scale_command(run, address, rollouts=rollouts))


@app.command(epilog=example("rethinker stop runs/mine"))
def stop(run: RunArgument, address: AddressOption = None) -> None:
    """Let a running run finish its step, write a checkpoint and end with exit code 0; run.resume=true goes on from there."""
    with refusals():
        _through_dashboard(address, "stop", run)
        from cluster.run_commands import stop_command

        typer.echo(stop_command(run, address))


@app.command(epilog=example("rethinker coldstart quickstart", "rethinker coldstart quickstart coldstart.steps=600"))
def coldstart(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """Make the model that training starts from, and print its folder.

    A tiny model is made from a configuration and taught the form of an answer by a short supervised phase. It is kept under
    coldstart.cache_dir, keyed by its settings, and 'train' makes it by itself where it is missing.
    """
    with refusals():
        settings = checked(config, overrides)
        if settings.coldstart.steps == 0:
            raise ConfigError(f"coldstart.steps = 0 asks for no cold start, model.path = {settings.model.path!r} is trained as it is.")
        from cluster.coldstart import run

        typer.echo(run(settings))


@app.command(epilog=example("rethinker curves runs/quickstart", "rethinker curves runs/none runs/episode --output modes.png"))
def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, by their paths.", show_default=False)],
    output: Annotated[Path, typer.Option(help="The picture to write, PNG.")] = Path("curves.png"),
) -> None:
    """Draw one run's step metrics, or compare several runs.

    Of several runs each panel shows its first metric only, one line a run.
    """
    with refusals():
        from cluster.metrics import read_metrics
        from cluster.plots import plot_curves

        for run in runs:
            if not (run / "metrics.jsonl").is_file():
                raise RunFolderError(f"{run} is no run folder: there is no metrics.jsonl in it")
        try:
            rows = {run.name: read_metrics(run / "metrics.jsonl") for run in runs}
        except ValueError as error:
            raise RunFolderError(str(error)) from error
        if len(rows) < len(runs):
            raise RunFolderError(f"two of the run folders have one name: {', '.join(map(str, runs))}")
        output.parent.mkdir(parents=True, exist_ok=True)
        plot_curves(rows, output)
        typer.echo(output)


@app.command(
    epilog=example(
        "rethinker plan vl_rethinker_7b",
        "rethinker plan my.yaml rollout.num_actors=8 --address auto",
    )
)
def plan(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Of a running cluster to compare with, 'auto' for one on this machine; without it, RAY_ADDRESS.", show_default=False
        ),
    ] = None,
) -> None:
    """Tell what a run would take, without starting anything.

    Prints the roles with their placement groups, the memory of a learner rank and of a rollout engine, and, where a cluster is connected,
    what would lie on which node and what is missing. Neither data nor weights need to be there. 'train' makes the same check before it
    starts an actor.
    """
    with refusals():
        settings = load_config(config, overrides or [])
        check(settings, paths=False)
        from cluster.plan import plan as run_plan

        run_plan(settings, address)


@app.command("config", epilog=example("rethinker config default", "rethinker config quickstart replay.mode=fresh --check"))
def print_config(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    complete: Annotated[bool, typer.Option("--check", help="Also refuse what 'train' would refuse.")] = False,
) -> None:
    """Print every setting of a run with its value, as YAML."""
    with refusals():
        settings = load_config(config, overrides or [])
        typer.echo(resolved_yaml(settings), nl=False)
        if complete:
            check(settings)


def main() -> None:
    """Run the command and exit with its code."""
    try:
        app()
    except SystemExit as done:
        if done.code == INTERRUPTED_EXIT_CODE:
            leave(INTERRUPTED_EXIT_CODE)
        raise
