"""What `rethinker submit` makes of a configuration, without a cluster."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.dashboard.modules.job.common import JobInfo, JobInfoStorageClient, JobStatus

from cluster import job_progress
from cluster.compatibility import resumed_where_there_is_a_run
from cluster.submission import _refuse_second, code_folder, entry_point
from conf.loading import ConfigError, load_config

ROOT = Path(__file__).parents[2]

ABSOLUTE = "run.dir=/shared/runs/first"


def entry(*words, name="quickstart", folder=ROOT):
    return shlex.split(entry_point(load_config(name, words), name, words, folder))


def test_the_job_is_a_command_that_anybody_could_have_submitted():
    assert entry(ABSOLUTE, "run.seed=2") == [
        "python", "-m", "cluster", "train", "quickstart", ABSOLUTE, "run.seed=2", "run.auto_resume=true",
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["run.resume=true", "resume=true", "run.overwrite=true", "run.auto_resume=false"])
def test_a_word_of_the_user_says_how_a_folder_with_a_run_is_treated(word):
    assert entry(ABSOLUTE, word)[-1] == word


def test_a_configuration_is_named_as_the_job_will_find_it(tmp_path):
    assert entry(ABSOLUTE, name=str(ROOT / "conf/experiment/quickstart.yaml"))[4] == "conf/experiment/quickstart.yaml"
    (tmp_path / "mine.yaml").write_text("run: {num_steps: 3}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml lies outside of .*--working-dir"):
        entry(ABSOLUTE, name=str(tmp_path / "mine.yaml"))


def test_a_text_with_blanks_arrives_whole():
    word = "data.prompt_suffix=' Think; then $answer.'"
    assert entry(ABSOLUTE, word)[6] == word


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run.name=first"], "run.dir = 'runs/first' would lie in the job's copy of the code"),
        ([ABSOLUTE, "cluster.address=10.0.0.1:6379"], "cluster.address = '10.0.0.1:6379' would lead the job to another cluster"),
    ],
)
def test_what_could_not_work_on_the_cluster_is_refused_here(words, told):
    with pytest.raises(ConfigError, match=told):
        entry(*words)


def test_the_code_is_found_or_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert code_folder(None) == ROOT  # where it was imported from
    with pytest.raises(ConfigError, match="does not hold Rethinker's code"):
        code_folder(tmp_path)


def test_a_job_says_what_it_is():
    config = load_config("quickstart", [ABSOLUTE, "run.name=first"])
    told = job_progress.job_metadata(config)
    assert told["run"] == "first" and told["run_dir"] == "/shared/runs/first" and told["num_steps"] == "60"
    again = load_config("quickstart", [ABSOLUTE, "run.name=first", "run.auto_resume=true", "run.resume=true"])
    other = load_config("quickstart", [ABSOLUTE, "run.name=first", "run.seed=2"])
    assert told == job_progress.job_metadata(again) != job_progress.job_metadata(other)
    assert all(isinstance(text, str) for text in told.values())  # Ray takes nothing else


@pytest.mark.parametrize(("status", "refused"), [(JobStatus.RUNNING, True), (JobStatus.PENDING, True), (JobStatus.FAILED, False)])
def test_two_jobs_never_share_a_run_folder(status, refused):
    config = load_config("quickstart", [ABSOLUTE])
    job = SimpleNamespace(metadata=job_progress.job_metadata(config), submission_id="quickstart-abc", status=status)
    driver = SimpleNamespace(metadata=None, submission_id=None, status=JobStatus.RUNNING)
    client = SimpleNamespace(list_jobs=lambda: [driver, job])
    if not refused:
        return _refuse_second(client, config)
    with pytest.raises(ConfigError, match=r"job quickstart-abc, which is .*rethinker stop quickstart"):
        _refuse_second(client, config)
    return None


def test_auto_resume_goes_on_only_where_there_is_a_run(tmp_path):
    config = load_config("quickstart", ["run.auto_resume=true"])
    stored = tmp_path / "config.yaml"
    assert not resumed_where_there_is_a_run(stored, config).run.resume
    stored.write_text("")
    assert resumed_where_there_is_a_run(stored, config).run.resume
    assert not resumed_where_there_is_a_run(stored, load_config("quickstart")).run.resume


def test_progress_goes_into_the_job_s_record_and_nothing_is_lost(monkeypatch):
    key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id="first-abc").encode()
    records = {key: json.dumps(JobInfo(status="RUNNING", entrypoint="python", metadata={"run": "first"}).to_json()).encode()}
    monkeypatch.setenv(job_progress.JOB_CONFIG_VARIABLE, json.dumps({"metadata": {"job_submission_id": "first-abc"}}))
    monkeypatch.setattr(job_progress, "_internal_kv_get", lambda key, namespace: records.get(key))
    monkeypatch.setattr(job_progress, "_internal_kv_put", lambda key, value, overwrite, namespace: records.update({key: value}))
    job_progress.tell_job({"progress": "step 3 of 12"})
    info = JobInfo.from_json(json.loads(records[key]))
    assert info.status is JobStatus.RUNNING and list(info.metadata.items()) == [("progress", "step 3 of 12"), ("run", "first")]


def test_outside_of_a_job_there_is_nothing_to_write_to(monkeypatch):
    monkeypatch.delenv(job_progress.JOB_CONFIG_VARIABLE, raising=False)
    monkeypatch.setattr(job_progress, "_internal_kv_get", lambda *_, **__: pytest.fail("asked the cluster"))
    job_progress.tell_job({"progress": "step 3 of 12"})
