"""What a feature file tells of how it was made: read back, held against strangers' attributes, and not mixed."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from cdn_tune.data.convert import convert
from cdn_tune.data.doctor import examine
from cdn_tune.data.doctor.features import check_features
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.data.planted import plant
from cdn_tune.data.videos.making import ATTRIBUTE, Making, from_plain, makings_in, read_making, write_making
from cdn_tune.errors import DataError
from tests.data.conftest import config_of

MAKING = Making("timm/resnet18", "0123456789abcdef", 2.0, 1, 0.0, 224, {"av": "18.1.0"})


def write(path: Path, *makings: Making | None, whole: Making | None = None) -> Path:
    """Writes a feature file with a video for each making."""
    with h5py.File(path, "w") as file:
        if whole is not None:
            write_making(file, whole)
        for number, making in enumerate(makings):
            file[f"v{number}"] = np.ones((2, 3), np.float32)
            if making is not None:
                write_making(file[f"v{number}"], making)
    return path


def test_a_making_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", MAKING, whole=MAKING)
    assert read_making(path) == MAKING
    assert read_making(path).versions == {"av": "18.1.0"}  # type: ignore[union-attr]
    assert read_making(write(tmp_path / "b.hdf5", None)) is None
    assert convert(path, tmp_path / "c.hdf5", "hdf5").videos == 1
    assert read_making(tmp_path / "c.hdf5") == MAKING


def test_versions_do_not_make_a_difference(tmp_path: Path) -> None:
    newer = replace(MAKING, versions={"av": "19"})
    assert newer == MAKING
    assert MAKING.differences(replace(newer, fps=4.0)) == "fps 2.0 is 4.0"
    assert list(makings_in(write(tmp_path / "a.hdf5", MAKING, newer, whole=MAKING)).values()) == [["v0", "v1"]]


def test_mixed_features_are_refused(tmp_path: Path) -> None:
    other = replace(MAKING, backbone="efficientnet_lite0")
    with pytest.raises(DataError, match=r"video 'v1' has features of another making \(backbone timm/resnet18 is eff"):
        read_making(write(tmp_path / "a.hdf5", MAKING, other, whole=MAKING))
    assert makings_in(tmp_path / "a.hdf5") == {MAKING: ["v0"], other: ["v1"]}
    every_third = [replace(MAKING, weights="0" * 16) if number % 3 == 1 else MAKING for number in range(200)]
    with pytest.raises(DataError, match="video 'v1' has features of another making"):
        read_making(write(tmp_path / "b.hdf5", *every_third, whole=MAKING))


def test_of_videos_that_do_not_say_how_they_were_made_the_doctor_warns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", None, MAKING, MAKING)
    assert read_making(path) == MAKING
    facts, findings = check_features(path, tmp_path, {f"v{number}": 1.0 for number in range(3)}, None, quick=False)
    assert from_plain(facts["making"]) == MAKING
    (finding,) = [each for each in findings if "do not tell" in each.what]
    assert (finding.level, finding.examples) == ("warning", ("v0",))


@pytest.mark.parametrize(
    "value",
    [
        *("{", "[]", '{"backbone": 1}', "9" * 9000, 5),
        *(MAKING.plain() | wrong for wrong in ({"fps": -1.0}, {"fps": 121}, {"window": 0}, {"window": 2000})),
        *(MAKING.plain() | wrong for wrong in ({"stride": float("nan")}, {"stride": 61}, {"size": 10**400})),
        *(
            MAKING.plain() | wrong
            for wrong in ({"backbone": "a\x1b"}, {"weights": "a" * 201}, {"versions": {"\n": ""}})
        ),
    ],
)
def test_an_attribute_that_is_no_making_is_one_line(tmp_path: Path, value: object) -> None:
    path = write(tmp_path / "a.hdf5", None)
    with h5py.File(path, "a") as file:
        file.attrs[ATTRIBUTE] = json.dumps(value) if isinstance(value, dict) else value
    with pytest.raises(DataError, match=f"a.hdf5: attribute {ATTRIBUTE} does not tell how") as caught:
        read_making(path)
    assert "\n" not in str(caught.value)
    if isinstance(value, dict):
        with pytest.raises(ValueError, match=r"is not within|not printable"):
            from_plain(value)


def test_the_doctor_and_the_manifest_tell_how_features_were_made(tmp_path: Path) -> None:
    root = plant(tmp_path / "data", videos=12, feature_size=4, word_size=50, frame_rate=1.0, seed=1).root
    (features,) = root.glob("*.hdf5")
    config = config_of(root)
    assert "making" not in fingerprint(config)
    with h5py.File(features, "a") as file:
        write_making(file, MAKING)
    assert from_plain(fingerprint(config)["making"]) == MAKING
    report = examine(root)
    assert from_plain(report.features["making"]) == MAKING
    assert not report.fails
    with h5py.File(features, "a") as file:
        first = next(iter(file))
        write_making(file[first], replace(MAKING, size=112))
    assert [finding.what for finding in examine(root).findings if finding.level == "error"] == [
        f"{features}: video {first!r} has features of another making (size 224 is 112), and no model can learn from a "
        "mixture"
    ]
    with pytest.raises(DataError, match="another making"):
        fingerprint(config)
