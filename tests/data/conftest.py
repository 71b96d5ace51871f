from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import settings

from cdn_tune.config import DataConfig
from cdn_tune.data.planted import plant
from tests.object_store import store, store_server

__all__ = ["store", "store_server"]

settings.register_profile("data", deadline=None)
settings.load_profile("data")

SHARED = Path(__file__).parents[3] / "shared"
HEADER = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """The folder of a dataset's real annotations; skips where it is absent."""

    def folder(dataset: str) -> Path:
        path = SHARED / "data" / dataset
        if not path.is_dir():
            pytest.skip(f"{path} is absent")
        return path

    return folder


@pytest.fixture(scope="session")
def planted_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated planting of 60 videos. Read only."""
    return plant(tmp_path_factory.mktemp("planted data") / "root", videos=60).root


@pytest.fixture
def planted_config(planted_root: Path) -> DataConfig:
    return config_of(planted_root)


def config_of(root: Path, **changes: object) -> DataConfig:
    values = {"dataset": "charades_sta", "feature_size": 64, "frames": 32, "word_vectors": "glove.planted.50d.txt",
              "word_size": 50}  # fmt: skip
    return DataConfig(**{**values, "root": str(root), **changes})  # type: ignore[arg-type]


class Small:
    """A hand-written Charades-STA folder: 6 training videos, 2 test videos, features of size 4, vectors of size 3."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.train = [f"AAAA{n} 1.0 {4 + n}.5##a person opens the door." for n in range(6)]
        self.lengths = {f"AAAA{n}": "20.00" for n in range(6)}
        self.write("charades_sta_test.txt", "BBBB0 0.0 5.0##person takes a cup.\nBBBB1 2.0 9.0##person takes a cup.\n")
        self.write("Charades_v1_test.csv", HEADER + "BBBB0,,,,,,,,,,10\nBBBB1,,,,,,,,,,10\n")
        self.write("glove.txt", "a 1 0 0\nperson 0 1 0\nopens 0 0 1\nthe 1 1 0\ndoor 1 0 1\ntakes 0 1 1\ncup 1 1 1\n")
        self.save()
        with h5py.File(root / "vgg_rgb_features.hdf5", "w") as file:
            for video in (*self.lengths, "BBBB0", "BBBB1"):
                file[video] = np.random.default_rng(len(file)).standard_normal((5, 4), dtype=np.float32)

    def write(self, name: str, text: str, **options: str) -> Path:
        path = self.root / name
        path.write_bytes(text.encode(**options))
        return path

    def save(self) -> None:
        self.write("charades_sta_train.txt", "\n".join(self.train) + "\n")
        rows = "".join(f'{video},P,Room,7,7,Yes,"one, two",cup,,,{length}\n' for video, length in self.lengths.items())
        self.write("Charades_v1_train.csv", HEADER + rows)

    def config(self, **changes: object) -> DataConfig:
        return config_of(
            self.root, **{"feature_size": 4, "frames": 8, "word_size": 3, "word_vectors": "glove.txt", **changes}
        )


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)
