import pytest

from loradag.data.rows import Row, open_writer, read_rows, schema, write_rows

ROWS = [
    Row(f"{at:x}", "text ü", "te", [1, 2, at], [0, 1, 1], [0, 1, 1], [3, 4, 0]) for at in range(7)
]


def test_rows_come_back_as_written_and_twice_the_same_bytes(tmp_path) -> None:
    for name in ("one", "two"):
        write_rows(tmp_path / name, ROWS)
    assert list(read_rows(tmp_path / "one")) == ROWS
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_rows_of_several_groups_are_one_sequence(tmp_path) -> None:
    import pyarrow as pa

    with open_writer(tmp_path / "rows") as writer:
        for part in (ROWS[:3], ROWS[3:4], ROWS[4:]):
            writer.write_table(pa.Table.from_pylist([vars(row) for row in part], schema()))
    rows = read_rows(tmp_path / "rows")
    assert len(rows) == 7
    assert list(rows) == ROWS
    assert rows[2:6] == ROWS[2:6]
    assert rows[-1] == ROWS[-1]
    assert [table.num_rows for table in rows.tables("input_ids")] == [3, 1, 3]
    with pytest.raises(IndexError):
        rows[7]


def test_no_rows_are_an_empty_sequence(tmp_path) -> None:
    write_rows(tmp_path / "rows", [])
    assert list(read_rows(tmp_path / "rows")) == []
    assert read_rows(tmp_path / "rows")[:3] == []


@pytest.mark.parametrize("groups", [[ROWS], [ROWS[:3], ROWS[3:]], []])
def test_columns_are_mapped_from_a_file(tmp_path, groups) -> None:
    import pyarrow as pa

    with open_writer(tmp_path / "rows") as writer:
        for part in groups:
            writer.write_table(pa.Table.from_pylist([vars(row) for row in part], schema()))
    ids, sizes = read_rows(tmp_path / "rows").map_columns(
        tmp_path / "columns", "input_ids", "token_bytes"
    )
    assert not any(row.flags.writeable or row.flags.owndata for row in ids)  # they are views
    expected = ROWS if groups else []
    assert [row.tolist() for row in ids] == [row.input_ids for row in expected]
    assert [row.tolist() for row in sizes] == [row.token_bytes for row in expected]
