"""Two clones of a project, each with a cache of its own, that share a DVC remote."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.sweeps.conftest import Toy, make_toy
from tests.sweeps.test_pipeline import QUICK, Counted

SECRET = "secret_of_the_test"


@dataclass
class Remote:
    url: str
    options: dict[str, str]  # of DVC, besides the URL

    def add_to(self, clone: Toy) -> None:
        words = [("add", "--local", "--default", "team", self.url)]
        words += [("modify", "--local", "team", *option) for option in self.options.items()]
        for command in words:
            code, output = clone.run("dvc", "remote", *command)
            assert code == 0, output


@pytest.fixture
def folder(tmp_path: Path) -> Remote:
    return Remote(str(tmp_path / "remote"), {})


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    """A bucket of moto's S3 server."""
    import boto3
    import requests
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "team")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    url = f"http://{host}:{port}"
    requests.post(f"{url}/moto-api/reset", timeout=60)  # its buckets outlive a server
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="team")
    yield Remote("s3://team/cache", {"endpointurl": url})
    server.stop()


@pytest.fixture
def remote(request: pytest.FixtureRequest) -> Remote:
    return request.getfixturevalue(request.param)


def on(quick: str, other: str) -> pytest.MarkDecorator:
    """Run a test on the remote `quick`, and as a slow one on the `other`."""
    kinds = [quick, pytest.param(other, marks=pytest.mark.slow)]
    return pytest.mark.parametrize("remote", kinds, indirect=True)


@pytest.fixture
def clones(remote: Remote, tmp_path: Path, store: str) -> tuple[Toy, Toy]:
    first = make_toy(tmp_path / "first", store)
    second = make_toy(tmp_path / "elsewhere/second", store)
    for clone in (first, second):
        remote.add_to(clone)
        assert clone.run("conf")[0] == 0
    return first, second


@on("folder", "bucket")
def test_a_second_clone_runs_nothing_but_the_report(clones: tuple[Toy, Toy]) -> None:
    first, second = clones
    for rank in ("4", "8"):  # `dvc.lock` names the outs of the second alone
        assert first.run("conf", f"adapter.r={rank}")[0] == 0
        assert first.run("dvc", "repro")[0] == 0
    first.ran()
    code, output = first.run("stages.push")
    assert code == 0, output

    for rank in ("4", "8"):
        assert second.run("conf", f"adapter.r={rank}")[0] == 0
        code, output = second.run("dvc", "repro", "--pull")
        assert code == 0, output
        assert second.ran() == {"report": 1}
    for name in ("report.html", "artifacts/merged/model"):
        assert (second.root / name).read_text() == (first.root / name).read_text()


@on("bucket", "folder")
def test_sweeps_take_stages_from_the_remote_and_add_to_it(clones: tuple[Toy, Toy]) -> None:
    first, second = clones
    code, output = first.sweep("adapter.r=4,8", "sweep.remote=true")
    assert code == 0, output
    assert first.ran() == {"prepare": 1, "quantize": 1, "train": 2, "evaluate": 2, "report": 2}

    code, output = second.sweep("adapter.r=4,8,16", "sweep.remote=true")
    assert code == 0, output
    assert second.ran() == {"train": 1, "evaluate": 1, "report": 3}

    code, output = first.sweep("adapter.r=16", "sweep.remote=true")
    assert code == 0, output
    assert first.ran() == {"report": 1}
    written = [file for clone in clones for file in clone.root.rglob("*") if file.is_file()]
    assert not [file for file in written if SECRET.encode() in file.read_bytes()]
    assert SECRET not in output


def test_runs_whose_files_were_deleted_are_no_hindrance(
    folder: Remote, tmp_path: Path, store: str
) -> None:
    first, second = (make_toy(tmp_path / name, store) for name in ("first", "second"))
    for clone in (first, second):
        folder.add_to(clone)
        assert clone.run("conf")[0] == 0
    assert first.run("dvc", "repro")[0] == 0
    assert first.run("dvc", "gc", "--workspace", "--force")[0] == 0  # also of the reports
    code, output = first.run("stages.push")
    assert code == 0, output
    assert "Missing cache files" not in output
    code, output = second.sweep("adapter.r=8", "sweep.remote=true")
    assert code == 0, output
    assert second.ran() == dict.fromkeys(("prepare", "quantize", "train", "evaluate", "report"), 1)


def test_a_sweep_without_a_remote_is_refused(toy: Toy) -> None:
    for module in (("stages.sweep", "-m", "adapter.r=4", "sweep.remote=true"), ("stages.push",)):
        code, output = toy.run(*module)
        assert code == 1
        assert "DVC has no default remote. Set one: `dvc remote add --default" in output
        assert "Traceback" not in output
    assert not toy.ran()


def test_a_remote_that_does_not_answer_is_one_message(
    bucket: Remote, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.options["endpointurl"] = "http://127.0.0.1:9"  # where nothing listens
    bucket.add_to(toy)
    code, output = toy.sweep("adapter.r=4", "sweep.remote=true")
    assert code == 1
    assert "sweep: the DVC remote cannot be used: " in output
    assert "Traceback" not in output
    assert SECRET not in output
    assert not toy.ran()


def test_the_committed_configuration_has_no_remote() -> None:
    assert "remote" not in (ROOT / ".dvc/config").read_text()
    assert "/config.local" in (ROOT / ".dvc/.gitignore").read_text()


@pytest.mark.slow
def test_a_second_clone_of_the_real_pipeline_runs_nothing_but_the_report(tmp_path: Path) -> None:
    clones = []
    for name in ("first", "second"):
        for folder in (tmp_path / name / "project", tmp_path / name / "counting"):
            folder.mkdir(parents=True)
        clones.append(Counted(tmp_path / name / "project", tmp_path / name / "counting"))
        add = ("dvc", "remote", "add", "--local", "--default", "team", str(tmp_path / "remote"))
        clones[-1].run(*add)
        clones[-1].run(sys.executable, "-m", "conf", *QUICK)
    first, second = clones
    first.run("dvc", "repro")
    first.run(sys.executable, "-m", "stages.push")
    shutil.rmtree(first.root)
    second.run("dvc", "repro", "--pull")
    assert second.ran() == {"report": 1}
    assert (second.root / "artifacts/export").is_dir()
    second.sweep("adapter.r=2", "sweep.remote=true")
    assert second.ran() == {"train": 1, "evaluate": 1, "report": 1}
