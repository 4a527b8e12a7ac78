"""The files in deploy/, checked without a cloud: by the launcher's, AWS', Kubernetes' and shellcheck's own rules, and
the SLURM script by a run with stand-ins for SLURM's two commands."""

from __future__ import annotations

import ast
import contextlib
import copy
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import kubernetes_validate
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

from coar_dist.config.schema import AblationConfig
from tests.commands import run_forked

KUBERNETES = "1.30"
RUN = re.compile(r"python -m coar_dist (.*)")


def load(repository: Path, name: str) -> Any:
    return yaml.safe_load((repository / "deploy" / name).read_text())


def check_launcher(config: Any) -> None:
    validate_config(prepare_config(copy.deepcopy(config)))


def aws_problems(node_config: dict[str, Any]) -> str:
    """What EC2's RunInstances does not know; empty: nothing."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    report = ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, shape)
    return str(report.generate_report())


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_launcher_accepts_the_cluster(repository: Path, name: str) -> None:
    config = load(repository, name)
    check_launcher(config)
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute'"):
        check_launcher({**config, "idle_timeout_minute": 5})


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_clusters_are_closed_and_workers_scale_from_zero(repository: Path, name: str) -> None:
    config = load(repository, name)
    head, worker = (config["available_node_types"][kind] for kind in ("head", "gpu"))
    assert head["resources"] == {"CPU": 0}
    assert worker["min_workers"] == 0
    assert worker["max_workers"] == config["max_workers"]
    assert worker["resources"]["GPU"] == 1
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert len([command for command in commands if "ray start" in command]) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in commands)
    assert any("ray start --head" in command and "--dashboard-host=127.0.0.1" in command for command in commands)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "0.0.0.0" not in " ".join(commands)


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_nodes_install_what_the_image_pins(repository: Path, name: str) -> None:
    """Nothing is resolved at launch: a node that starts next month has the head's Ray."""
    config = load(repository, name)
    files = set()
    for command in [*config["setup_commands"], *config["head_setup_commands"]]:
        if "pip install" in command:
            assert "--no-deps" in command or "--require-hashes" in command, command
            files |= set(re.findall(r"-r ~/coar_dist/(\S+)", command))
            assert re.search(r"-r ~/coar_dist/\S+$| ~/coar_dist$", command), command
    assert files == {f"docker/requirements-{part}.txt" for part in ("build", "cuda", "head")}
    assert all((repository / file).exists() for file in files)
    assert "docker" not in " ".join(config["rsync_exclude"])
    python = re.search(r"uv venv .*?--python (\S+)", " ".join(config["setup_commands"]))
    assert python is not None
    assert f"--python-version {python[1]} " in (repository / "docker" / "lock.sh").read_text()


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "README.md"])
def test_tokens_are_their_owners_alone(repository: Path, name: str) -> None:
    lines = (repository / "deploy" / name).read_text().splitlines()
    made = [line for line in lines if "ray get-auth-token --generate" in line]
    assert made
    assert all("chmod 600 ~/.ray/auth_token" in line for line in made)


GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$GCLOUD_LOG"
"""


def test_ssh_to_google_cloud_is_open_to_one_address(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GCLOUD_LOG": str(tmp_path / "log")}
    script = repository / "deploy" / "gcp-firewall.sh"
    assert subprocess.run([script], env=environment, capture_output=True, check=False).returncode == 1
    assert not (tmp_path / "log").exists()
    subprocess.run([script, "203.0.113.7/32", "my-project"], env=environment, check=True)
    rules = []
    for line in (tmp_path / "log").read_text().splitlines():
        assert line.startswith("compute firewall-rules create coar-dist-")
        rules.append(dict(option.removeprefix("--").split("=", 1) for option in line.split()[4:]))
    nodes = load(repository, "gcp.yaml")["available_node_types"].values()
    assert all(node["node_config"]["tags"] == {"items": [rules[0]["target-tags"]]} for node in nodes)
    denied, *allowed = sorted(rules, key=lambda rule: rule["action"] != "DENY")
    assert (denied["rules"], denied["source-ranges"]) == ("all", "0.0.0.0/0")
    sources = [(rule["rules"], rule.get("source-ranges"), rule.get("source-tags")) for rule in allowed]
    assert sources == [("tcp:22", "203.0.113.7/32", None), ("all", None, denied["target-tags"])]
    assert all(int(rule["priority"]) < int(denied["priority"]) < 65534 for rule in allowed)


def test_ec2_knows_every_field_of_the_nodes(repository: Path) -> None:
    types = load(repository, "aws.yaml")["available_node_types"]
    for node_type in types.values():
        assert not aws_problems(node_type["node_config"])
        assert node_type["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "VolumeSise" in aws_problems({"BlockDeviceMappings": [{"Ebs": {"VolumeSise": 1}}]})


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stand-in for AWS. The object store of other tests has its data in the same process: it is kept."""
    from moto import mock_aws

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    stand_in = mock_aws()
    stand_in.start(reset=False)
    yield
    stand_in.stop(remove_data=False)


@pytest.mark.usefixtures("account")
def test_launcher_starts_the_nodes_in_an_account(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a stand-in for AWS: what aws-account.yaml makes is what the launcher takes, for the head and for a worker."""
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("HOME", str(tmp_path))  # the launcher's key pair goes there
    (tmp_path / ".ssh").mkdir()
    config = load(repository, "aws.yaml")
    region = config["provider"]["region"]
    boto3.client("cloudformation", region).create_stack(
        StackName="coar-dist",
        TemplateBody=(repository / "deploy" / "aws-account.yaml").read_text(),
        Parameters=[
            {"ParameterKey": "Bucket", "ParameterValue": "my-bucket"},
            {"ParameterKey": "SshFrom", "ParameterValue": "203.0.113.7/32"},
        ],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    launched = bootstrap_aws(prepare_config(config))
    provider = AWSNodeProvider(launched["provider"], launched["cluster_name"])
    for kind, node_type in launched["available_node_types"].items():
        tags = {"ray-node-type": kind, "ray-node-name": kind, "ray-user-node-type": kind, "ray-launch-config": "x"}
        provider.create_node(node_type["node_config"], tags, 1)

    ec2, iam = boto3.client("ec2", region), boto3.client("iam", region)
    nodes = {node["InstanceType"]: node for node in instances_of(ec2)}
    head, worker = (nodes[node["node_config"]["InstanceType"]] for node in launched["available_node_types"].values())
    assert worker["InstanceLifecycle"] == "spot"
    assert head.get("InstanceLifecycle") is None
    assert head["MetadataOptions"]["HttpTokens"] == worker["MetadataOptions"]["HttpTokens"] == "required"
    (group,) = head["SecurityGroups"]
    assert worker["SecurityGroups"] == [group]
    ssh, inside = ec2.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"][0]["IpPermissions"]
    assert (ssh["FromPort"], ssh["ToPort"], ssh["IpProtocol"]) == (22, 22, "tcp")
    assert [block["CidrIp"] for block in ssh["IpRanges"]] == ["203.0.113.7/32"]
    assert inside["IpRanges"] == []
    assert [pair["GroupId"] for pair in inside["UserIdGroupPairs"]] == [group["GroupId"]]

    def allowed(role: str, policy: str) -> list[dict[str, Any]]:
        document = iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
        statements: list[dict[str, Any]] = ast.literal_eval(document)["Statement"]
        return statements

    for node, role, policies in (
        (head, "coar-dist-head", ["autoscaler", "bucket"]),
        (worker, "coar-dist-worker", ["bucket"]),
    ):
        assert node["IamInstanceProfile"]["Arn"].endswith(f"/{role}")
        assert sorted(iam.list_role_policies(RoleName=role)["PolicyNames"]) == policies
        resources = [statement["Resource"] for statement in allowed(role, "bucket")]
        assert resources == ["arn:aws:s3:::my-bucket", "arn:aws:s3:::my-bucket/*"]
    head_may = allowed("coar-dist-head", "autoscaler")
    (passed,) = [statement for statement in head_may if statement["Action"] == "iam:PassRole"]
    assert passed["Resource"] == iam.get_role(RoleName="coar-dist-worker")["Role"]["Arn"]

    partition = "arn:aws:ec2:us-west-2:123456789012:"
    instance, subnet = f"{partition}instance/i-1", f"{partition}subnet/s-1"
    own, other = config["cluster_name"], "another"
    for action, resource, context, is_allowed in (
        ("ec2:RunInstances", instance, {"aws:RequestTag/ray-cluster-name": own}, True),
        ("ec2:RunInstances", instance, {"aws:RequestTag/ray-cluster-name": other}, False),
        ("ec2:RunInstances", instance, {}, False),
        ("ec2:RunInstances", subnet, {}, True),
        ("ec2:CreateTags", instance, {"ec2:CreateAction": "RunInstances"}, True),
        ("ec2:CreateTags", instance, {"aws:RequestTag/ray-cluster-name": own}, False),
        ("ec2:CreateTags", instance, {"aws:ResourceTag/ray-cluster-name": own}, True),
        ("ec2:CreateTags", subnet, {"aws:ResourceTag/ray-cluster-name": own}, False),
        ("ec2:TerminateInstances", instance, {"aws:ResourceTag/ray-cluster-name": own}, True),
        ("ec2:TerminateInstances", instance, {"aws:ResourceTag/ray-cluster-name": other}, False),
        ("ec2:TerminateInstances", instance, {}, False),
        ("ec2:DescribeInstances", "*", {}, True),
        ("ec2:CreateSecurityGroup", "*", {}, False),
    ):
        assert allows(head_may, action, resource, context) == is_allowed, (action, resource, context)


def allows(statements: list[dict[str, Any]], action: str, resource: str, context: dict[str, str]) -> bool:
    """Whether these statements allow a request, as AWS evaluates those that have no Deny and no condition but one."""

    def listed(value: str | list[str]) -> list[str]:
        return [value] if isinstance(value, str) else value

    return any(
        any(fnmatch.fnmatchcase(action, pattern) for pattern in listed(statement["Action"]))
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in listed(statement["Resource"]))
        and all(
            context.get(key) == value for key, value in statement.get("Condition", {}).get("StringEquals", {}).items()
        )
        for statement in statements
    )


def instances_of(ec2: Any) -> list[dict[str, Any]]:
    return [node for reservation in ec2.describe_instances()["Reservations"] for node in reservation["Instances"]]


@pytest.mark.usefixtures("account")
def test_heads_are_as_large_as_the_page_says(repository: Path) -> None:
    """And AWS' machines as large as their resources say."""
    import boto3

    config = load(repository, "aws.yaml")
    head, gpu = (config["available_node_types"][kind]["node_config"]["InstanceType"] for kind in ("head", "gpu"))
    ec2 = boto3.client("ec2", config["provider"]["region"], aws_access_key_id="test", aws_secret_access_key="test")
    found = ec2.describe_instance_types(InstanceTypes=[head, gpu])["InstanceTypes"]
    machines = {machine["InstanceType"]: machine for machine in found}
    assert machines[gpu]["VCpuInfo"]["DefaultVCpus"] == config["available_node_types"]["gpu"]["resources"]["CPU"]
    cpus, gigabytes = machines[head]["VCpuInfo"]["DefaultVCpus"], machines[head]["MemoryInfo"]["SizeInMiB"] // 1024
    assert f"**The head** has {cpus} CPUs and {gigabytes} GB" in (repository / "deploy" / "README.md").read_text()
    assert load(repository, "gcp.yaml")["available_node_types"]["head"]["node_config"]["machineType"] == "n2-standard-2"
    (pod,) = pods_of(load(repository, "rayjob.yaml"))["head"]["containers"]
    for resources in pod["resources"].values():
        assert (resources["cpu"], resources["memory"]) == (str(cpus), f"{gigabytes}Gi")


def pods_of(job: Any) -> dict[str, Any]:
    cluster = job["spec"]["rayClusterSpec"]
    return {
        "submitter": job["spec"]["submitterPodTemplate"]["spec"],
        "head": cluster["headGroupSpec"]["template"]["spec"],
        **{group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]},
    }


def check_pod(spec: Any) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_kubernetes_job(repository: Path) -> None:
    schema = json.loads((repository / "tests" / "deploy" / "rayjob.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    job = load(repository, "rayjob.yaml")
    jsonschema.validate(job, schema)
    for spec in pods_of(job).values():
        check_pod(spec)

    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxReplica'"):
        jsonschema.validate(job, schema)
    spec = pods_of(job)["head"]
    spec["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="resource"):
        check_pod(spec)


def test_pods_have_no_privileges_and_say_what_they_need(repository: Path) -> None:
    job = load(repository, "rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert job["spec"]["shutdownAfterJobFinishes"]
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    containers = [container for spec in pods_of(job).values() for container in spec["containers"]]
    assert len(containers) == 3
    for security in [container["securityContext"] for container in (*containers, cluster["autoscalerOptions"])]:
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["privileged"] is False
        assert security["allowPrivilegeEscalation"] is False
    for spec in pods_of(job).values():
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "hostNetwork" not in spec
    for container in (*containers, cluster["autoscalerOptions"]):
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]) <= set(container["resources"]["limits"])
    assert pods_of(job)["gpu"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_kubernetes_run_ends_in_time_and_a_wrong_option_soon(repository: Path) -> None:
    spec = load(repository, "rayjob.yaml")["spec"]
    assert 7 * 86400 < spec["activeDeadlineSeconds"] < 31 * 86400
    assert spec["backoffLimit"] == 1  # KubeRay tries again whatever the reason, on a new cluster
    assert spec["submitterConfig"]["backoffLimit"] == 0
    workers = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert [(group["replicas"], group["minReplicas"]) for group in workers] == [(0, 0)]  # no GPU before the actors


def test_pods_that_end_the_run_are_not_moved_and_disks_are_asked_for(repository: Path) -> None:
    job = load(repository, "rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    for template in (job["spec"]["submitterPodTemplate"], cluster["headGroupSpec"]["template"]):
        annotations = template["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert annotations["karpenter.sh/do-not-disrupt"] == "true"
    assert "metadata" not in cluster["workerGroupSpecs"][0]["template"]  # a lost worker is replaced
    containers = [container for spec in pods_of(job).values() for container in spec["containers"]]
    for resources in [container["resources"] for container in (*containers, cluster["autoscalerOptions"])]:
        assert resources["requests"]["ephemeral-storage"] == resources["limits"]["ephemeral-storage"]


def test_slurm_job_has_all_memory_of_its_nodes(repository: Path) -> None:
    options = re.findall(r"^#SBATCH (\S+)$", (repository / "deploy" / "slurm.sh").read_text(), re.MULTILINE)
    assert {"--exclusive", "--mem=0", "--requeue", "--open-mode=append"} <= set(options)


def test_slurm_job_is_told_of_its_end_longer_before_than_a_shard_takes(repository: Path) -> None:
    (seconds,) = re.findall(r"^#SBATCH --signal=B:USR1@(\d+)$", (repository / "deploy" / "slurm.sh").read_text(), re.M)
    assert int(seconds) >= 2 * AblationConfig().shard_seconds


def test_entrypoint_is_a_run_in_an_object_store(repository: Path, tmp_path: Path) -> None:
    """The command line composes its configuration."""
    entrypoint = load(repository, "rayjob.yaml")["spec"]["entrypoint"]
    overrides = shlex.split(RUN.fullmatch(entrypoint)[1])  # type: ignore[index]
    config = yaml.safe_load(run_forked(tmp_path, *overrides, "--cfg", "job").stdout)
    assert config["run"]["dir"].startswith("s3://")
    workers = load(repository, "rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert config["cluster"]["max_actors"] == workers[0]["maxReplicas"]
    assert config["cluster"]["gpus_per_actor"] == 1
    assert config["cluster"]["address"] == "auto"


def test_shell_scripts(repository: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck is not None
    scripts = sorted((repository / "deploy").glob("*.sh"))
    assert len(scripts) == 2
    subprocess.run([shellcheck, *scripts], check=True)


SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then tr , '\\n' <<< "$3"; else echo "$*" >> "$SCONTROL_LOG"; fi
"""
SMALL = [
    "stages=[train,ablate]",
    "train.epochs=1",
    "train.minimum_accuracy=0",
    "task.examples.arguments.num_examples=40",
    "design.num_masks=320",
    "gradients.num_masks=0",
    "baselines=[]",
    "evaluation.num_masks=16",
    "evaluation.ablation_fractions=[0.05]",
    "ablation.masks_per_shard=16",
    "ablation.mode=weights",
    "ablation.rows_per_forward=40",
]


NOTED = """#!/usr/bin/env bash
echo "${0##*/} $1" >> "$NOTES"
if [[ $1 == start ]]; then exec sleep 60; fi
if [[ $1 == status ]]; then (($(grep -c status "$NOTES") > 1)); fi
"""


def test_slurm_job_waits_for_ray_itself(repository: Path, tmp_path: Path) -> None:
    """Not for an open port, which here is another program's."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "ray": NOTED, "python": NOTED}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with socket.socket() as other:
        for job_id in range(6000):
            with contextlib.suppress(OSError):
                other.bind(("127.0.0.1", 20000 + job_id))
                break
        other.listen()
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "NOTES": str(tmp_path / "notes"),
            "SLURM_JOB_ID": str(job_id),
            "SLURM_JOB_NODELIST": "one",
            "SLURM_CPUS_PER_TASK": "1",
            "HEAD_IP": "127.0.0.1",
        }
        subprocess.run(["bash", repository / "deploy" / "slurm.sh"], cwd=tmp_path, env=environment, check=True)
    notes = (tmp_path / "notes").read_text().splitlines()
    assert sorted(notes[:2]) == ["ray start", "ray status"]
    assert notes[2:] == ["ray status", "python -m"]


@pytest.mark.cluster
@pytest.mark.slow
def test_slurm_job_is_stopped_queued_again_and_goes_on(repository: Path, tmp_path: Path) -> None:
    """A signal before the time limit: the driver stops, the job is requeued, and its second start resumes."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    job_id = 10_000_000 + os.getpid()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(repository),
        "SLURM_JOB_ID": str(job_id),
        "SLURM_JOB_NODELIST": "one,two",
        "SLURM_CPUS_PER_TASK": "1",
        "HEAD_IP": "127.0.0.1",
        "SCONTROL_LOG": str(tmp_path / "scontrol"),
    }

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", repository / "deploy" / "slurm.sh", "run.dir=run", *SMALL],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    first = start()
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "run" / "margins" / "train").glob("*.parquet")):
            assert first.poll() is None, first.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        first.send_signal(signal.SIGUSR1)
        printed, _ = first.communicate(timeout=60)
    assert first.returncode == 130, printed
    assert "What is finished is kept" in printed
    assert (tmp_path / "scontrol").read_text() == f"requeue {job_id}\n"
    assert not Path(f"/tmp/ray-{job_id}").exists()
    assert "Ray runtime started" in (tmp_path / f"coar-dist-{job_id}.ray.log").read_text()
    assert not (tmp_path / f"coar-dist-{job_id}.ray").exists()  # which is for errors

    environment["SLURM_RESTART_COUNT"] = "1"
    second = start()
    try:
        printed, _ = second.communicate(timeout=120)
    finally:
        second.terminate()  # it stops what it started
    assert second.returncode == 0, printed
    assert "Ray on one two; start 1." in printed
    there = re.search(r"([\d,]+) masks? there already", printed)
    assert there is not None, printed
    assert int(there[1].replace(",", "")) >= 16
    assert (tmp_path / "scontrol").read_text() == f"requeue {job_id}\n"
