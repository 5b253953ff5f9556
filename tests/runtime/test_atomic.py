"""Outputs appear completely or not at all."""

import pytest

from loradag.runtime import replacing


def test_a_folder_is_replaced_by_a_folder_and_never_by_a_file(tmp_path) -> None:
    place = tmp_path / "place"
    (place / "old").mkdir(parents=True)
    with pytest.raises(IsADirectoryError), replacing(place) as partial:
        partial.write_text("new")
    assert (place / "old").exists()
    assert list(tmp_path.iterdir()) == [place]
    with replacing(place) as partial:
        (partial / "new").mkdir(parents=True)
    assert [path.name for path in place.iterdir()] == ["new"]
