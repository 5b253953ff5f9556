"""The pin of a base: what its weights are, and where they lie."""

import hashlib
import json
from pathlib import Path
from typing import Any

from loradag.checkpoints.model_files import DESCRIPTION, LICENSES, PIN
from loradag.config.problems import LoradagError

# Some repositories keep the same weights once more, in folders or under another name.
HUB_FILES: dict[str, Any] = {
    "allow_patterns": ["*.safetensors", "*.safetensors.index.json", *DESCRIPTION, *LICENSES],
    "ignore_patterns": ["*/*", "consolidated*"],
}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_folder(base: Path) -> Path:
    """The folder of the weights that `base` pins, checked against the pin.

    Raises:
        LoradagError: they are gone or have changed.
    """
    pin = json.loads((base / PIN).read_text(encoding="utf-8"))
    if pin["source"] == "hub":
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        pinned = {"revision": pin["revision"], **HUB_FILES}
        try:
            return Path(snapshot_download(pin["id"], local_files_only=True, **pinned))
        except LocalEntryNotFoundError:
            return Path(snapshot_download(pin["id"], **pinned))
    if pin["source"] != "local":
        return base
    folder = Path(pin["path"]).expanduser()
    for name, file in pin["weights"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file["bytes"] or (
            sha256(path) != file["sha256"]
        ):  # fmt: skip
            raise LoradagError(
                f"{path}: is not what was pinned. Restore it, or pin it anew with "
                "`dvc repro --force fetch`."
            )
    return folder
