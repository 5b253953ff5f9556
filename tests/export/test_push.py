"""The upload to a model hub, against a stand-in on the loopback interface."""

import base64
import http.server
import json
from collections.abc import Callable
from typing import Any

import pytest

from loradag.config.problems import LoradagError
from loradag.export.feasibility import check_feasible
from loradag.runtime import Paths
from tests.conftest import HUB_TOKEN, ServeHub, run_stages, smoke_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Hub = Callable[..., list[tuple[str, Any]]]


def options(*overrides: str) -> Any:
    return smoke_config(
        "quantize=none", "export.push=someone/tuned", "export.type=f32",
        "export.max_new_tokens=2", *overrides,
    )  # fmt: skip


@pytest.fixture
def hub(serve_hub: ServeHub) -> Hub:
    """Call it with the status that a request whose path contains a word is answered with.

    The repository has the files `there`.
    """

    def start(
        status: int = 200, at: str = "", there: tuple[str, ...] = (), private: bool = True
    ) -> list[tuple[str, Any]]:
        requests: list[tuple[str, Any]] = []

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/api/models/someone/tuned"
                assert self.headers["Authorization"] == f"Bearer {HUB_TOKEN}"
                files = [{"rfilename": name} for name in there]
                found = {"id": "someone/tuned", "private": private, "siblings": files}
                self._send(status if status == 401 else 200, found)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                assert self.headers["Authorization"] == f"Bearer {HUB_TOKEN}"
                content = [json.loads(line) for line in body.splitlines()]
                requests.append((self.path, content))
                failed = status != 200 and at in self.path
                self._send(
                    status if failed else 200,
                    {"error": "no space is left"} if failed else self._answer(content),
                )

            def _send(self, status: int, content: Any) -> None:
                self.send_response(status)
                answer = json.dumps(content).encode()
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def _answer(self, content: list[Any]) -> Any:
                here = f"http://127.0.0.1:{self.server.server_port}/someone/tuned"  # type: ignore[attr-defined]
                if "preupload" in self.path:
                    modes = {"uploadMode": "regular", "shouldIgnore": False}
                    return {"files": [{"path": file["path"], **modes}
                                      for file in content[0]["files"]]}  # fmt: skip
                return {"url": here, "commitUrl": f"{here}/commit/{COMMIT}", "commitOid": COMMIT}

        serve_hub(Answer)
        return requests

    return start


@pytest.mark.parametrize("formats", ["gguf", "[gguf,safetensors]"])
def test_the_export_is_uploaded_to_a_private_repository(
    exportable: Paths, hub: Hub, formats: str
) -> None:
    requests = hub()
    report = run_stages(exportable, options(f"export.formats={formats}"), "export")["export"]
    assert report["pushed"] == {"repository": "someone/tuned", "commit": COMMIT, "private": True}
    assert HUB_TOKEN not in json.dumps(report)

    created = next(body[0] for path, body in requests if path == "/api/repos/create")
    assert created["name"] == "tuned"
    assert created["organization"] == "someone"
    assert created.get("private") is True or created.get("visibility") == "private"
    (committed,) = [body for path, body in requests if "/commit/" in path]
    uploaded = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in committed
        if line["key"] == "file"
    }
    root = exportable.export if "safetensors" in formats else exportable.export / "gguf"
    expected = {
        file.relative_to(root).as_posix(): file.read_bytes()
        for file in root.rglob("*")
        if file.is_file()
    }
    card = (exportable.export / "gguf/README.md").read_bytes()
    assert uploaded == expected | {"README.md": card}


def test_an_earlier_checkpoint_is_replaced_and_nothing_else(exportable: Paths, hub: Hub) -> None:
    """A model.safetensors that stayed would be loaded instead of the shards."""
    earlier = ("model.safetensors", "older-q8_0.gguf", "README.md", "safetensors/config.json")
    requests = hub(there=earlier, private=False)
    config = options("export.formats=safetensors", "export.max_shard_size=200KB")
    report = run_stages(exportable, config, "export")["export"]
    assert report["pushed"]["private"] is False
    (committed,) = [body for path, body in requests if "/commit/" in path]
    deleted = [line["value"]["path"] for line in committed if line["key"] == "deletedFile"]
    assert deleted == ["model.safetensors"]


@pytest.mark.parametrize(
    ("status", "at", "message"),
    [
        (401, "create", "HF_TOKEN is not accepted"),
        (403, "commit", "may not write there.*hf upload someone/tuned"),
        (413, "commit", "the hub answered 413 no space is left.*The export is complete in"),
        (500, "commit", "the hub answered 500.*The export is complete in"),
    ],
)
def test_a_refusal_is_one_message_and_loses_nothing(
    exportable: Paths, hub: Hub, monkeypatch: pytest.MonkeyPatch, status: int, at: str, message: str
) -> None:
    hub(status, at)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's own attempts
    with pytest.raises(LoradagError, match=rf"export\.push = 'someone/tuned': .*{message}") as said:
        run_stages(exportable, options("export.formats=gguf"), "export")
    assert "\n" not in str(said.value)
    assert HUB_TOKEN not in str(said.value)
    if at == "commit":
        assert (exportable.export / "gguf/README.md").exists()


@pytest.mark.parametrize(
    ("token", "offline", "message"),
    [("", False, "HF_TOKEN is not set"), (HUB_TOKEN, True, "HF_HUB_OFFLINE is set")],
)
def test_no_token_and_no_network_are_refused_before_training(
    exportable: Paths, monkeypatch: pytest.MonkeyPatch, token: str, offline: bool, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(LoradagError, match=rf"export\.push.*{message}"):
        check_feasible(exportable, options())
    with pytest.raises(LoradagError, match=rf"export\.push.*{message}"):
        run_stages(exportable, options(), "export")


def test_an_unreachable_hub_is_one_message(
    exportable: Paths, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LoradagError, match="the hub cannot be reached"):
        run_stages(exportable, options(), "export")
