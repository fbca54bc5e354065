"""The Kubernetes manifests: valid by KubeRay's published schema, in step with each other and with the run that they start."""

import json
import os
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from cluster.placement import Node, check_placement
from conf.checks import check
from conf.loading import load_config
from conf.resources import placement_requests

FOLDER = Path(__file__).parents[2] / "cluster/kubernetes"
SCHEMAS = "RETHINKER_KUBERAY_SCHEMAS"
KINDS = ("cpu", "gpu")


def manifest(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def closed(schema):
    """The same schema with unknown keys refused wherever it lists the known ones, as an API server with strict validation does."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def errors(document):
    folder = os.environ.get(SCHEMAS)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"{SCHEMAS} names no folder with KubeRay's published schemas (rayjob.v1.openapi.json, raycluster.v1.openapi.json)")
    schema = closed(json.loads((Path(folder) / f"{document['kind'].lower()}.v1.openapi.json").read_text()))
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(document)]


@pytest.mark.parametrize("name", [f"{resource}-{kind}" for resource in ("rayjob", "raycluster") for kind in KINDS])
def test_a_manifest_is_valid_by_the_published_schema(name):
    assert errors(manifest(name)) == []


def test_the_check_finds_unknown_keys_and_wrong_types():
    document = manifest("rayjob-cpu")
    group = document["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    group["maxReplica"] = group.pop("maxReplicas")
    group["template"]["securityContext"] = {}
    document["spec"]["shutdownAfterJobFinishes"] = "yes"
    found = "\n".join(errors(document))
    assert all(
        word in found for word in ("'maxReplica' was unexpected", "'maxReplicas' is a required", "securityContext", "'yes' is not of type")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_job_and_cluster_have_the_same_nodes(kind):
    assert manifest(f"rayjob-{kind}")["spec"]["rayClusterSpec"] == manifest(f"raycluster-{kind}")["spec"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_job_s_run_is_a_valid_one_and_fits_on_its_nodes(kind):
    document = manifest(f"rayjob-{kind}")
    program, command, name, *overrides = shlex.split(document["spec"]["entrypoint"])
    assert (program, command) == ("rethinker", "train")
    config = load_config(name, overrides)
    check(config, paths=False)
    nodes = [node for group in document["spec"]["rayClusterSpec"]["workerGroupSpecs"] for node in nodes_of(group)]
    check_placement(placement_requests(config), nodes)
    assert config.cluster.autoscaling  # nodes come on demand: the run waits for them
    written = [config.run.dir, config.coldstart.cache_dir if config.coldstart.steps else "/runs"]
    assert all(path.startswith("/runs/") or path == "/runs" for path in written)


def nodes_of(group):
    """What Ray would count on the pods of a group at its largest."""
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    own = json.loads(json.loads(group["rayStartParams"]["resources"]))
    resources = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0)), **own}
    return [Node(name=f"{group['groupName']}-{i}", resources=resources) for i in range(group["maxReplicas"])]


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_has_limits_probes_storage_and_no_root(kind):
    spec = manifest(f"raycluster-{kind}")["spec"]
    claims = {document["metadata"]["name"] for document in yaml.safe_load_all((FOLDER / "storage.yaml").read_text())}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == f"REGISTRY/rethinker:{kind}"
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {"readinessProbe", "livenessProbe"} <= container.keys()
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume} == claims
        assert pod["securityContext"]["runAsNonRoot"]
    assert spec["authOptions"]["mode"] == "token"


def test_the_pinned_ray_is_the_cluster_s():
    pin = next(line for line in (FOLDER.parents[1] / "requirements-cpu.lock").read_text().splitlines() if line.startswith("ray=="))
    assert {manifest(f"rayjob-{kind}")["spec"]["rayClusterSpec"]["rayVersion"] for kind in KINDS} == {pin.removeprefix("ray==").split()[0]}
