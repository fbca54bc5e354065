"""`rethinker status`, `scale` and `stop`: what is asked of a run that is running.

Owns the words and the table. What a status holds is decided by the run itself (cluster.train).
"""

from __future__ import annotations

import json
import time
from typing import Any

import ray
import typer
from ray.exceptions import RayError
from rich.console import Console
from rich.table import Table

from cluster.contact import Contact, connected_to, find
from cluster.run_folder import RunUnreachable

ANSWER_TIMEOUT_S = 30.0
POLL_S = 0.1


def read_status(contact: Contact) -> dict[str, Any]:
    """Ask a run how it is.

    Args:
        contact: of the run.

    Returns:
        Its status, with ``age_s``.

    Raises:
        RunUnreachable: when it can't be reached or has posted nothing yet.
    """
    with connected_to(contact) as desk:
        seen = _ask(desk.look.remote(), contact)
    if seen["status"] is None:
        raise RunUnreachable(f"run {contact.run!r} has only just begun and has not said how it is; ask again in a second")
    return seen["status"] | {"age_s": round(seen["age_s"], 1)}


def request(contact: Contact, kind: str, **values: Any) -> str:
    """Ask something of a run, and wait until its driver answers.

    Args:
        contact: of the run.
        kind: of request.
        **values: that it needs.

    Returns:
        The driver's sentence.

    Raises:
        RunUnreachable: when the run can't be reached, does not answer, or refuses.
    """
    with connected_to(contact) as desk:
        number = _ask(desk.ask.remote(kind, values), contact)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while time.monotonic() < deadline:
            seen = _ask(desk.answer.remote(number), contact)
            if seen is None:
                raise RunUnreachable(f"the desk of run {contact.run!r} was restarted and has lost the request; ask again")
            if seen["answer"] is not None:
                if seen["refused"]:
                    raise RunUnreachable(f"run {contact.run!r} refuses: {seen['answer']}")
                return seen["answer"]
            time.sleep(POLL_S)
    raise RunUnreachable(f"the driver of run {contact.run!r} did not answer within {ANSWER_TIMEOUT_S:g} s; the request stands")


def status_command(run: str, address: str | None, *, as_json: bool) -> None:
    """Print how a run is.

    Args:
        run: its folder or name.
        address: of its cluster.
        as_json: for programs.

    Raises:
        RunUnreachable: when it can't be reached.
    """
    status = read_status(find(run, address))
    if as_json:
        typer.echo(json.dumps(status, indent=2))
    else:
        print_status(status, Console())


def print_status(status: dict[str, Any], console: Console) -> None:
    """Print a status for people.

    Args:
        status: as the run posted it.
        console: to print on.
    """
    console.print(f"[bold]{status['run']}[/bold]  {status['phase']}  step {status['step']}/{status['num_steps']}", highlight=False)
    rollouts = status["rollouts"]
    console.print(
        f"rollout actors: {rollouts['in_service']} in service, {rollouts['target']} wanted, {rollouts['starting']} starting,"
        f" {rollouts['leaving']} leaving",
        highlight=False,
    )
    table = Table("role", "state", "for", "version", "restarts", "reason")
    now = time.time()
    for role in status["roles"]:
        since = f"{now - role['since']:.0f} s"
        version = "" if role["version"] is None else str(role["version"])
        table.add_row(f"{role['kind']} {role['rank']}", role["state"], since, version, str(role["restarts"]), role["reason"])
    console.print(table)
    for notice in status["notices"]:
        console.print(notice, highlight=False)
    for death in status["deaths"][-3:]:
        when = time.strftime("%H:%M:%S", time.localtime(death["time"]))
        console.print(f"{when} {death['role']} died: {death['cause']}", highlight=False)
    if status["age_s"] > 10:
        console.print(f"the driver has said nothing for {status['age_s']:.0f} s", style="bold")


def _ask(reference: Any, contact: Contact) -> Any:
    try:
        return ray.get(reference, timeout=ANSWER_TIMEOUT_S)
    except RayError as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise RunUnreachable(f"the desk of run {contact.run!r} does not answer: {reason}") from error


def scale_command(run: str, address: str | None, *, rollouts: int) -> str:
    """Ask for another number of rollout actors.

    Args:
        run: its folder or name.
        address: of its cluster.
        rollouts: wanted.

    Returns:
        The run's answer.

    Raises:
        RunUnreachable: when it can't be reached or refuses.
    """
    return request(find(run, address), "scale", rollouts=rollouts)


def stop_command(run: str, address: str | None) -> str:
    """Ask a run to finish its step, write a checkpoint and end.

    Args:
        run: its folder or name.
        address: of its cluster.

    Returns:
        The run's answer.

    Raises:
        RunUnreachable: when it can't be reached or refuses.
    """
    return request(find(run, address), "stop")
