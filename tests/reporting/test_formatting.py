from typing import Any

import pytest

from loradag.reporting import formatting as text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (text.number(38.1), "38.1"),
        (text.number(0.0121), "0.0121"),
        (text.number(8496), "8,496"),
        (text.number(12345.6), "12,346"),
        (text.number(1.2e-6), "1.2e-06"),
        (text.number(True), "yes"),
        (text.fixed(1234.5, 2), "1,234.50"),
        (text.count(134_515_008), "134.5 M"),
        (text.count(999), "999"),
        (text.count(7e9), "7 B"),
        (text.size(269_060_280), "269 MB"),
        (text.size(512), "512 B"),
        (text.size(7.5e9), "7.5 GB"),
        (text.duration(6.12), "6.1 s"),
        (text.duration(44.3), "44 s"),
        (text.duration(193.5), "3 min 14 s"),
        (text.duration(3 * 3600 + 61), "3 h 01 min"),
        (text.percent(0.0178), "1.78 %"),
        (text.percent(1.0), "100 %"),
        (text.change(38.1, 19.8), "−48.0 %"),
        (text.change(38.1, 40.7), "+6.8 %"),
        (text.change(2.0, 2.0), "±0.0 %"),
        (text.change(2.0, 1.99999), "±0.0 %"),
        (text.change(0, 2.0), ""),
    ],
)
def test_numbers_read_well(written: Any, expected: str) -> None:
    assert written == expected
