"""Tables of recorded learning curves: what is written is read again, and what is damaged is one line."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdn_tune.errors import ConfigError
from cdn_tune.tuning.simulation.curves import LARGEST, line_of, read_curves, read_table, write_table

from .tables import EPOCHS, make_curves, make_header, make_record

POINT = {"optim.lr": 1e-3, "model.map.layers": 2}


def test_a_table_is_read_as_it_was_written_and_its_bytes_follow_from_the_curves(tmp_path: Path) -> None:
    curves = make_curves(12)
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        write_table(tmp_path / name, curves.header, curves.records)
    found = read_curves(tmp_path / "one.jsonl.gz")
    assert (found.header, list(found.records), found.is_run) == (curves.header, curves.records, False)
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()
    assert found.metrics == ["R1@0.5", "mIoU"]
    assert found.start_seconds == 0.5


def test_a_table_may_be_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text(f"{line_of(make_header())}\n{line_of(make_record(POINT, 0))}\n")
    assert read_table(path).records[0].parameters == POINT


def changed(**more: Any) -> str:
    return line_of(make_record(POINT, 0)).replace('"seed":0', f'"seed":0,{json.dumps(more)[1:-1]}')


SHORT = list(np.linspace(0, 1, EPOCHS - 1))
DAMAGED = {
    "loss has 7 epochs of 8": line_of(make_record(POINT, 0, loss=SHORT)),
    "val lacks R1@0.5": line_of(make_record(POINT, 0, val={"mIoU": [0.0] * EPOCHS})),
    "test R1@0.5 has 7 epochs": line_of(make_record(POINT, 0, test={"R1@0.5": SHORT})),
    "seconds do not rise": line_of(make_record(POINT, 0, seconds=[1.0] * EPOCHS)),
    "seed": line_of(make_record(POINT, 0)).replace('"seed":0', '"seed":-1'),
    "steps": line_of(make_record(POINT, 0)).replace('"steps":10', '"steps":"10"'),
    "start_seconds": line_of(make_record(POINT, 0)).replace('"start_seconds":0.5', '"start_seconds":NaN'),
    "extra": changed(extra=1),
    "has none of those": line_of(make_record(POINT, 0)).replace("optim.lr", "a").replace("model.map.layers", "b"),
    "no JSON": "{",
    "nested": "[" * 200 + "]" * 200,
    "no mapping": "3",
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_line_is_named(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text(f"{line_of(make_header())}\n{line_of(make_record(POINT, 1))}\n{DAMAGED[fault]}\n")
    with pytest.raises(ConfigError, match=f"table.jsonl:3: .*{fault}") as raised:
        read_table(path)
    assert "\n" not in str(raised.value)


FILES = {
    "no such file": None,
    "is empty": b"",
    "holds no curve": f"{line_of(make_header())}\n".encode(),
    "version": line_of(make_header()).replace('"version":1', '"version":2').encode(),
    "cannot be read": gzip.compress(b"{}" * 1000)[:-20],
    "holds more than 64 MB": gzip.compress(bytes(LARGEST + 1)),
    "no JSON": b"\x93NUMPY" + b"\x01\x00" * 4,
}


@pytest.mark.parametrize("fault", FILES)
def test_what_is_no_table_is_one_line(fault: str, tmp_path: Path) -> None:
    path, content = tmp_path / "table", FILES[fault]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=fault if fault != "no JSON" else "no JSON|cannot be read") as raised:
        read_curves(path)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_search_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder without a search"):
        read_curves(tmp_path)
