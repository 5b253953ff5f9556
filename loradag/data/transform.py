"""A user's own function from a row to a row."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from loradag.config.problems import LoradagError
from loradag.data.shapes import DroppedError
from loradag.data.sources import Fields


class Transform:
    """The function that `prepare.transform` = FILE.py:FUNCTION names; without one, the identity."""

    def __init__(self, named: str | None) -> None:
        self.named = named
        self._function: Any = None

    def __call__(self, row: Fields) -> Fields:
        """The row to use.

        Raises:
            DroppedError: the function returned None, or failed.
        """
        if self.named is None:
            return row
        try:
            made = self._load()(dict(row))
        except LoradagError:
            raise
        except Exception as error:  # whatever a user's function raises
            message = f"prepare.transform failed with {type(error).__name__}: {error}"
            raise DroppedError("transform", message, is_error=True) from error
        if made is None:
            raise DroppedError("transform", "prepare.transform returned None")
        if not isinstance(made, dict):
            message = f"prepare.transform returned a {type(made).__name__}, no row of fields"
            raise DroppedError("transform", message, is_error=True)
        return made

    def _load(self) -> Any:
        if self._function is None:
            file, _, name = str(self.named).rpartition(":")
            path = Path(file).expanduser()
            spec = importlib.util.spec_from_file_location(f"prepare_transform_{path.stem}", path)
            if not path.is_file() or spec is None or spec.loader is None:
                raise LoradagError(f"prepare.transform = {self.named!r}: no such file.")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # where a dataclass looks for the types of its fields
            try:
                spec.loader.exec_module(module)
            except Exception as error:  # whatever a user's module raises
                raise LoradagError(
                    f"prepare.transform = {self.named!r}: importing it failed with "
                    f"{type(error).__name__}: {error}."
                ) from error
            self._function = getattr(module, name, None)
            if not callable(self._function):
                raise LoradagError(f"prepare.transform = {self.named!r}: {file} has no {name}.")
        return self._function

    def __getstate__(self) -> dict[str, Any]:
        """Other processes load the file themselves."""
        return {"named": self.named, "_function": None}
