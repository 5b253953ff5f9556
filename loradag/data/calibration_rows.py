"""The rows that `prepare` sets aside for scales and importances."""

from pathlib import Path

from loradag.config.problems import LoradagError


def read_calibration_rows(path: Path, most: int, needed_by: str) -> list[list[int]]:
    """Token ids of at most `most` of the rows that prepare set aside.

    Args:
        needed_by: the option that needs them, for the message.

    Raises:
        LoradagError: there are none.
    """
    import pyarrow.parquet as pq

    rows: list[list[int]] = pq.read_table(path, columns=["input_ids"])["input_ids"].to_pylist()
    if not rows:
        raise LoradagError(
            f"{needed_by}: there are no calibration rows. Raise prepare.calibration_fraction or "
            f"the number of rows, or choose another {needed_by.split()[0]}, which needs none."
        )
    return rows[:most]
