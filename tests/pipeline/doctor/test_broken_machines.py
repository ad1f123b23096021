"""A healthy machine, and eight broken ones: each is named, with its outcome and what to do.

Real: a full disk and small shared memory (tmpfs in a namespace of mounts), a directory of another user, a server of S3
that refuses the keys, a port on which nothing listens, a Ray whose CPUs are taken, a package that cannot be imported.
The GPU without a driver is a directory as the kernel would list it, and torch's version of CUDA.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import ray
import torch

from pipeline.config import make_config
from pipeline.doctor import cluster, gpus, hub
from pipeline.doctor.check import Outcome
from pipeline.doctor.output import output_checks
from pipeline.storage import objects
from tests.support import s3
from tests.support.command import command, sewd_in_process
from tests.support.hub import hub_server
from tests.support.servers import free_port

OTHER_USER = 65534
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
MOUNTS = "mount -t tmpfs -o size=64m tmpfs /dev/shm && mount -t tmpfs -o size=64k tmpfs {full} && exec {sewd}"


@pytest.fixture
def healthy_hub(tmp_path):
    with hub_server(tmp_path):
        yield


@pytest.mark.usefixtures("local_ray", "healthy_hub")
def test_a_healthy_machine_has_no_warning(tmp_path, small_ctc):
    done = sewd_in_process("doctor", "--model", small_ctc, "--output", tmp_path / "runs" / "r1", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert list(checks) == [
        *("CPUs", "instructions", "memory", "shared memory", "open files", "temporary files", "versions", "hub"),
        *("output", "conditional writes", "torch", "GPU", "model", f"model {small_ctc}"),
        *("Ray", "Ray worker", "resources"),
    ]
    # How busy, how large and how new this machine is, is not the matter of this test.
    machine = ("CPUs", "instructions", "memory", "shared memory", "open files", "temporary files")
    assert {name: check["outcome"] for name, check in checks.items() if check["outcome"] != "ok"}.keys() <= {*machine}
    assert done.returncode == 0
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The checks on a machine with a full output, little shared memory, a wrong torch and a dead hub, and its code."""
    if subprocess.run(
        [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, capture_output=True
    ).returncode:
        pytest.skip("this system does not let a user mount in a namespace of its own")
    folder = tmp_path_factory.mktemp("broken")
    (folder / "packages" / "torch").mkdir(parents=True)
    (folder / "packages" / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open')\n")
    (folder / "packages" / "torch-2.1.0.dist-info").mkdir()
    (folder / "packages" / "torch-2.1.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.1.0\n")
    (folder / "full").mkdir()
    sewd = " ".join(command("doctor", "--output", folder / "full", "--json"))
    paths = [str(folder / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", MOUNTS.format(full=folder / "full", sewd=sewd)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout, done.stderr
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_a_failure_is_exit_code_1(broken):
    assert broken[0] == 1


@pytest.mark.parametrize(
    ("name", "outcome", "message", "advice"),
    [
        ("output", "failure", "no space:", "remove files"),
        ("shared memory", "warning", "/dev/shm has 0.06 GiB free", "--shm-size=2g"),
        ("versions", "failure", "torch is 2.1.0, and must be >=2.5", "pip install"),
        ("torch", "failure", "cannot be imported: libcudart.so.12: cannot open", "install the build of torch"),
        ("hub", "warning", "does not answer", "HF_ENDPOINT"),
    ],
    ids=["no-space", "small-shared-memory", "wrong-torch", "broken-torch", "dead-hub"],
)
def test_what_is_broken_is_named(broken, name, outcome, message, advice):
    check = broken[1][name]
    assert check["outcome"] == outcome
    assert message in check["message"]
    assert advice in check["advice"]


def test_without_rights_the_output_is_a_failure():
    folder = Path(tempfile.mkdtemp())  # below it another user may look; below pytest's directories not
    folder.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(OTHER_USER)  # root may write everywhere
        (check,) = output_checks(str(folder / "run"))
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)
    assert check.outcome is Outcome.FAILURE
    assert "Permission denied" in check.message
    assert "may read, write" in check.advice


def test_below_a_directory_of_another_user_the_output_is_a_failure():
    folder = Path(tempfile.mkdtemp())  # as above
    (folder / "closed").mkdir(mode=0o700 if os.geteuid() == 0 else 0)
    user = os.geteuid()
    try:
        folder.chmod(0o755)
        if user == 0:
            os.seteuid(OTHER_USER)
        (check,) = output_checks(str(folder / "closed" / "runs" / "r1"))
    finally:
        os.seteuid(user)
        (folder / "closed").rmdir()
        folder.rmdir()
    assert check.outcome is Outcome.FAILURE
    assert "closed/runs/r1: Permission denied" in check.message
    assert "may read, write" in check.advice


@pytest.mark.parametrize("name", ["file.txt", "file.txt/run", "file.txt/a/run"])
def test_a_file_as_output_is_a_failure(tmp_path, name):
    (tmp_path / "file.txt").touch()
    (check,) = output_checks(str(tmp_path / name))
    assert check.outcome is Outcome.FAILURE
    assert f"{tmp_path}/file.txt is a file" in check.message


def test_a_link_without_a_target_as_output_is_a_failure(tmp_path):
    (tmp_path / "link").symlink_to("gone")
    (check,) = output_checks(str(tmp_path / "link" / "run"))
    assert check.outcome is Outcome.FAILURE
    assert f"{tmp_path}/link is a link without a target" in check.message


def test_wrong_credentials_are_a_failure_and_ignored_conditions_a_warning(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    with s3.rclone_server(tmp_path):
        written, conditions = output_checks("s3://runs/r1")
        assert (written.outcome, conditions.outcome) == (Outcome.OK, Outcome.WARNING)
        assert "ignores" in conditions.message
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another" * 6)
        s3.s3fs.S3FileSystem.clear_instance_cache()
        (check,) = output_checks("s3://runs/r1")
    assert check.outcome is Outcome.FAILURE
    assert "access was refused" in check.message
    assert "credentials" in check.advice


def test_a_store_that_honours_conditions_is_ok_and_no_bucket_or_an_object_a_failure():
    with s3.moto_server():
        bucket = s3.make_bucket("runs")
        checks = output_checks(f"{bucket}/r1")
        (missing,) = output_checks("s3://absent/r1")
        objects.put(f"{bucket}/report.html", b"a page")
        (taken,) = output_checks(f"{bucket}/report.html")
        assert objects.fetch(f"{bucket}/report.html") == b"a page"
    assert taken.outcome is Outcome.FAILURE
    assert taken.message == f"{bucket}/report.html is an object; a run is a directory or prefix"
    assert [check.outcome for check in checks] == [Outcome.OK, Outcome.OK]
    assert missing.outcome is Outcome.FAILURE


def test_a_gpu_without_a_driver_is_a_failure(tmp_path, monkeypatch):
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    (check,) = gpus.gpu_checks(tmp_path)
    assert check.outcome is Outcome.FAILURE
    assert "1 NVIDIA GPU," in check.message
    assert "nvidia-smi" in check.advice
    monkeypatch.setattr(torch.version, "cuda", None)
    (check,) = gpus.gpu_checks(tmp_path)
    assert (check.outcome, "built for CPUs" in check.message) == (Outcome.WARNING, True)


def test_a_token_that_the_hub_refuses_is_named(tmp_path, monkeypatch):
    with hub_server(tmp_path, token="right"):
        monkeypatch.setenv("HF_ENDPOINT", os.environ["HF_ENDPOINT"] + "/")
        assert hub.hub().outcome is Outcome.OK
        monkeypatch.setenv("HF_TOKEN", "wrong")
        check = hub.hub(is_needed=True)
    assert check.outcome is Outcome.FAILURE
    assert "refuses the token" in check.message


class Refusing(BaseHTTPRequestHandler):
    """Answers with the status `server.status`."""

    def do_GET(self):
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.usefixtures("healthy_hub")
def test_a_status_that_is_an_error_is_no_answer_and_the_password_is_not_shown(monkeypatch):
    with s3.web_server(Refusing) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://user:secret@127.0.0.1:{server.server_port}")
        for server.status in (400, 404, 407, 429, 503):
            check = hub.hub()
            assert check.outcome is Outcome.WARNING
            assert f"http://127.0.0.1:{server.server_port} answers with status {server.status}" in check.message
    for address in (f"127.0.0.1:{server.server_port}", "[::1"):
        monkeypatch.setenv("HF_ENDPOINT", f"http://user:secret@{address}")
        check = hub.hub(is_needed=True)
        assert check.outcome is Outcome.FAILURE
        assert "does not answer: " in check.message
        assert "secret" not in check.message


@pytest.mark.usefixtures("healthy_hub")
def test_an_error_without_text_is_named_by_its_type(monkeypatch):
    class Session:
        def get(self, *_, **__):
            raise ConnectionError

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    assert hub.hub().message.endswith("does not answer: ConnectionError")


@pytest.mark.usefixtures("local_ray")
def test_a_busy_cluster_is_a_warning_and_one_that_is_too_small_a_failure():
    config = make_config(inputs=(".",), output=".")
    assert cluster.resources(config).outcome is Outcome.OK

    @ray.remote(num_cpus=2)
    class Work:
        def works(self) -> bool:
            return True

    work = Work.remote()
    assert ray.get(work.works.remote())
    try:
        check = cluster.resources(config)
    finally:
        ray.kill(work)
    assert check.outcome is Outcome.WARNING
    assert "busy: 1 of 3 CPUs" in check.message
    assert "wait" in check.advice
    too_small = cluster.resources(make_config(inputs=(".",), output=".", actors=20, cpus_per_actor=1.0))
    assert too_small.outcome is Outcome.FAILURE


def test_no_ray_at_an_address_is_a_failure(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # else the Ray of other tests would be used
    (check,) = cluster.cluster_checks(make_config(inputs=(".",), output=".", address=f"127.0.0.1:{free_port()}"))
    assert (check.name, check.outcome) == ("Ray", Outcome.FAILURE)
    assert "no Ray at" in check.message


def test_bad_usage_is_exit_code_2():
    assert sewd_in_process("doctor", "--modell", "x").returncode == 2
    done = sewd_in_process("doctor", "--output", "nosuch://runs/r1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nosuch" in done.stderr
