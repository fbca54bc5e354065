"""`rethinker submit`: a run as a Ray job, through the cluster's dashboard.

Owns what a job is called, what is shipped with it and how it is followed. Needs no Ray process on this machine; the job itself is
`python -m cluster train`, as a user could submit it by hand.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.job_progress import job_metadata
from conf.loading import ConfigError, shipped_names
from conf.schema import Config

NOT_SHIPPED = ["/.git", "/.venv", "/.cache", "/runs", "/build", "/dist", "/docs/pictures"]
"""Of the working directory, besides what its .gitignore names: large, and nothing that a run reads."""

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
EXIT_CODES = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 130}
GOES_ON = ("run.resume", "run.overwrite", "run.auto_resume")  # a word of these says how the job treats a folder that holds a run


def submit(
    config: Config,
    name: str,
    overrides: Sequence[str],
    *,
    address: str | None,
    working_dir: Path | None,
    follow: bool,
    again_s: float = 1.0,
) -> int:
    """Submit a run.

    Args:
        config: loaded from name and overrides, checked.
        name: the configuration's file or shipped name, as the user wrote it.
        overrides: ``key=value`` words.
        address: of the dashboard; None: RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else this machine's.
        working_dir: what the job runs in; None: the current folder where it holds the code, else the code's own.
        follow: print the job's output until it ends.
        again_s: between two looks at a job that has not ended though its output has.

    Returns:
        0 once submitted; with follow the job's exit code, 130 where it was stopped.

    Raises:
        ConfigError: when the job could not work, no cluster answers, the cluster refuses, or the run is under way there.
    """
    folder = code_folder(working_dir)
    entrypoint = entry_point(config, name, overrides, folder)
    with _answered(address):
        client = JobSubmissionClient(address)
        _refuse_second(client, config)
        job = client.submit_job(
            entrypoint=entrypoint,
            submission_id=f"{config.run.name.replace('/', '-')}-{secrets.token_hex(3)}",
            runtime_env={"working_dir": str(folder), "excludes": NOT_SHIPPED, "env_vars": {"PYTHONUNBUFFERED": "1"}},
            metadata=job_metadata(config),
        )
    print(f"submitted {job}: {entrypoint}", flush=True)
    if not follow:
        print(f"ray job logs --follow {job} shows it, rethinker status and rethinker stop {config.run.name} ask it and end it")
        return 0
    return _follow(client, job, again_s)


def ask(words: Sequence[str], address: str, *, again_s: float = 0.5) -> int:
    """Run a command of ours on the cluster's head, as a small job that is forgotten afterwards, and print what it says.

    Args:
        words: such as ["status", "/shared/runs/first"].
        address: of the dashboard.
        again_s: between two looks.

    Returns:
        The command's exit code.

    Raises:
        ConfigError: when no cluster answers or it refuses.
    """
    with _answered(address):
        client = JobSubmissionClient(address)
        environment = {"working_dir": str(code_folder(None)), "excludes": NOT_SHIPPED}
        entrypoint = shlex.join(["python", "-m", "cluster", *words])
        job = client.submit_job(entrypoint=entrypoint, submission_id=f"ask-{secrets.token_hex(4)}", runtime_env=environment)
        while not (details := client.get_job_info(job)).status.is_terminal():
            time.sleep(again_s)
        said = client.get_job_logs(job).splitlines()
        client.delete_job(job)
    begin = next((number for number, line in enumerate(said, start=1) if line.startswith("Running entrypoint")), 0)
    print("\n".join(said[begin:]))
    return EXIT_CODES.get(details.status, details.driver_exit_code or 1)


def entry_point(config: Config, name: str, overrides: Sequence[str], folder: Path) -> str:
    """Write the job's command.

    Args:
        config: loaded from name and overrides.
        name: the configuration's file or shipped name.
        overrides: ``key=value`` words.
        folder: the job's working directory.

    Returns:
        A shell command that goes on where a former job with the same run folder came to, unless an override says otherwise.

    Raises:
        ConfigError: when it could not work on another machine.
    """
    if not Path(config.run.dir).is_absolute():
        raise ConfigError(
            f"run.dir = '{config.run.dir}' would lie in the job's copy of the code, which goes with the job; name an absolute path on"
            " storage that every node sees."
        )
    if config.cluster.address is not None:
        raise ConfigError(f"cluster.address = '{config.cluster.address}' would lead the job to another cluster; leave it to --address.")
    if name not in shipped_names() or Path(name).is_file():
        path = Path(name).resolve()
        if not path.is_relative_to(folder):
            raise ConfigError(f"{name} lies outside of {folder}, which is all that the job sees of this machine; see --working-dir.")
        name = path.relative_to(folder).as_posix()
    chosen = {word.partition("=")[0] for word in overrides}
    chosen |= {f"run.{key}" for key in chosen}
    words = [] if chosen & set(GOES_ON) else ["run.auto_resume=true"]
    return shlex.join(["python", "-m", "cluster", "train", name, *overrides, *words])


def code_folder(working_dir: Path | None) -> Path:
    """Find what a job runs in.

    Args:
        working_dir: that a user has named; None: the current folder where it holds the code, else where the code was imported from.

    Returns:
        A folder with the code.

    Raises:
        ConfigError: when the folder that was named holds none.
    """
    spec = find_spec("cluster")
    assert spec is not None
    assert spec.origin is not None
    own = Path(spec.origin).parents[1]
    candidates = [working_dir] if working_dir is not None else [Path.cwd(), own]
    for candidate in candidates:
        if (candidate / "cluster" / "__main__.py").is_file() and (candidate / "pyproject.toml").is_file():  # never a whole site-packages
            return candidate.resolve()
    raise ConfigError(
        f"{' and '.join(map(str, candidates))} {'do' if len(candidates) > 1 else 'does'} not hold Rethinker's code, which the job brings"
        " along; name its folder by --working-dir."
    )


def _refuse_second(client: JobSubmissionClient, config: Config) -> None:
    """Two jobs in one run folder would write over each other."""
    for job in client.list_jobs():
        same = (job.metadata or {}).get("run_dir") == config.run.dir
        if same and job.submission_id and not job.status.is_terminal():
            raise ConfigError(
                f"run.dir = '{config.run.dir}' belongs to job {job.submission_id}, which is {job.status.value.lower()}; end it with"
                f" 'rethinker stop {(job.metadata or {}).get('run')}', then submit again to go on."
            )


def _follow(client: JobSubmissionClient, job: str, again_s: float) -> int:
    """Print what the job prints. Ctrl-C ends the following, not the job."""

    async def tail() -> Any:
        async for lines in client.tail_job_logs(job):
            sys.stdout.write(lines)
            sys.stdout.flush()
        while not (details := client.get_job_info(job)).status.is_terminal():
            await asyncio.sleep(again_s)
        return details

    try:
        with _answered(client.get_address()):
            details = asyncio.run(tail())
    except KeyboardInterrupt:
        print(f"\n{job} goes on; ray job logs --follow {job} shows it")
        return EXIT_CODES[JobStatus.STOPPED]
    print(f"{job} {details.status.value.lower()}")
    return EXIT_CODES.get(details.status, details.driver_exit_code or 1)


@contextmanager
def _answered(address: str | None) -> Iterator[None]:
    """Tell a cluster's silence or refusal in a sentence. Ray lets the environment win over an address that was named; here it does not."""
    hidden = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if address is not None and name in os.environ}
    where = address or next((os.environ[name] for name in ADDRESS_VARIABLES if name in os.environ), "http://127.0.0.1:8265")
    try:
        yield
    except AuthenticationError as error:
        raise ConfigError(
            f"the cluster at {where} refuses this client ({str(error).splitlines()[0].rstrip('.')}); set RAY_AUTH_MODE=token, and the"
            " cluster's token as RAY_AUTH_TOKEN or in a file that RAY_AUTH_TOKEN_PATH names (docs/security.md)."
        ) from error
    except ConnectionError as error:
        raise ConfigError(f"no Ray dashboard answers at {where}; --address names one, such as http://HEAD:8265.") from error
    except RuntimeError as error:
        raise ConfigError(f"the cluster at {where} refuses the job: {str(error).strip().splitlines()[0]}") from error
    finally:
        os.environ.update(hidden)
