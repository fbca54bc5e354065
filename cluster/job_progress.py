"""What a run that is a Ray job writes on its own job: what it is and how far it has come.

Ray has no public call for it: a job's record is JSON in the cluster's key-value store, where the dashboard and every client read it. The
place and form of that record are Ray's own (ray.dashboard.modules.job.common); a test on a real head holds us to them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading

from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY, JobInfoStorageClient
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from conf.loading import config_hash
from conf.schema import Config

logger = logging.getLogger(__name__)

JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for a submitted job's command
NAMESPACE = b"job"


def job_metadata(config: Config) -> dict[str, str]:
    """Say what a job is, for the dashboard and for other clients.

    Args:
        config: of the run.

    Returns:
        Texts, as Ray wants them. A job that goes on with a run has the hash of the job before it.
    """
    settings = dataclasses.replace(config, run=dataclasses.replace(config.run, resume=False, auto_resume=False, overwrite=False))
    return {
        "run": config.run.name,
        "run_dir": config.run.dir,
        "config_hash": config_hash(settings),
        "num_steps": str(config.run.num_steps),
    }


def submission_id() -> str | None:
    """Name the submitted job that this process is.

    Returns:
        Its submission id; None where it was not submitted.
    """
    return json.loads(os.environ.get(JOB_CONFIG_VARIABLE, "{}")).get("metadata", {}).get(JOB_ID_METADATA_KEY)


def tell_job(notes: dict[str, str]) -> None:
    """Write notes into this process's job; outside of a submitted job nothing happens.

    Args:
        notes: texts by name, such as ``{"progress": "step 3/12"}``; they replace older ones of the same name.
    """
    job = submission_id()
    if job is None:
        return
    key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id=job).encode()
    record = _internal_kv_get(key, namespace=NAMESPACE)
    if record is None:
        logger.info("job %s has no record to write its progress to", job)
        return
    info = json.loads(record)
    info["metadata"] = notes | {name: text for name, text in (info.get("metadata") or {}).items() if name not in notes}  # the news first
    _internal_kv_put(key, json.dumps(info).encode(), overwrite=True, namespace=NAMESPACE)


class JobNotes:
    """Takes a run's notes and writes them into its job from a thread of its own, so that a silent control store never holds up the run.

    Args:
        about: notes that go with the first ones.
    """

    def __init__(self, about: dict[str, str]) -> None:
        self._waiting = dict(about)
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None

    def __call__(self, notes: dict[str, str]) -> None:
        """Take notes; what arrives while a write is under way goes with the next one."""
        if submission_id() is None:
            return
        with self._lock:
            self._waiting |= notes
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="job notes", daemon=True)
                self._writer.start()

    def _write(self) -> None:
        while True:
            with self._lock:
                notes, self._waiting = self._waiting, {}
                if not notes:
                    self._writer = None
                    return
            try:
                tell_job(notes)
            except Exception as error:  # notes are a convenience; the run must not end for want of them
                logger.warning("the job's record was not written: %s", error)
