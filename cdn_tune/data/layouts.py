"""Layouts: the files of a dataset's folder, and how its annotations are read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cdn_tune.config import DataConfig
from cdn_tune.config.tables import LAYOUTS, resolve
from cdn_tune.data.annotations import Loaded, Scanned, Split, collect
from cdn_tune.data.files import is_remote, locate, remote_file
from cdn_tune.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One dataset's files. `config.tables.LAYOUTS` lists the layouts.

    Attributes:
        features: Usual names of the feature file, best first.
        files: The annotation files of a split, given root and split; empty where the dataset has no such split.
        scan: Reads a split that has files entry by entry, wrong ones as errors.
        recognise: Whether a folder has annotation files of this layout.
        restrict: The annotation files of a split, given root and split, with the entries of some videos only: name to
            text.
        member: Where features lie in groups, the name of the dataset in each video's group.
        raw: The form (of `data convert`) in which its features usually come.
        ious: IoUs that the dataset's papers report.
        editions: Published editions by their pairs of train, val and test.
        shared: Pairs of splits that share videos as published, and why.
    """

    features: tuple[str, ...]
    files: Callable[[Path, Split], tuple[Path, ...]]
    scan: Callable[[Path, Split], Iterator[Scanned]]
    recognise: Callable[[Path], bool]
    restrict: Callable[[Path, Split, frozenset[str]], dict[str, str]]
    member: str | None = None
    raw: str = "arrays"
    ious: tuple[float, ...] = (0.3, 0.5, 0.7)
    editions: Mapping[tuple[int, int, int], str] = field(default_factory=dict)
    shared: Mapping[tuple[Split, Split], str] = field(default_factory=dict)

    def load(self, root: Path, split: Split) -> Loaded:
        """Returns the content of the files of a split, in file order.

        Raises:
            DataError: If a file is missing or empty, or an entry is wrong; the message names file and entry.
        """
        return collect(str(self.files(root, split)[0]), self.scan(root, split))


def layout_of(dataset: str) -> Layout:
    """Returns the layout of a dataset.

    Raises:
        DataError: If the name is unknown.
    """
    if dataset not in LAYOUTS:
        raise DataError(f"data.dataset={dataset!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    layout: Layout = resolve(LAYOUTS[dataset].layout)
    return layout


def recognise(root: Path) -> list[str]:
    """Returns the layouts whose annotation files lie in a folder, in the order of the table."""
    return [name for name in LAYOUTS if layout_of(name).recognise(root)]


def root_of(config: DataConfig) -> Path:
    """Returns the data folder.

    Raises:
        DataError: If it does not exist or is no folder.
    """
    root = Path(config.root).expanduser()
    if not root.is_dir():
        fault = "is not a folder" if root.exists() else "does not exist"
        remedy = "set data.root, or write data there with: cdn-tune data plant"
        raise DataError(f"data.root={config.root} {fault}; {remedy}")
    return root


def features_path(config: DataConfig) -> Path:
    """Returns the feature file: `config.features`, or the first of the dataset's usual names that exists in root.

    Raises:
        DataError: If there is none.
    """
    root = root_of(config)
    if config.features is not None and is_remote(config.features):
        return remote_file(config.features, "data.features")
    if config.features is not None:
        path = locate(root, config.features)
        if not path.is_file():
            raise DataError(f"data.features={config.features}: no such file here or in {root}; correct data.features")
        return path
    names = layout_of(config.dataset).features
    for name in names:
        if (root / name).is_file():
            return root / name
    raise DataError(f"{root}: no feature file ({' or '.join(names)}); put it there or set data.features to its path")


def vectors_path(config: DataConfig) -> Path:
    """Returns the path of the word vectors in text form; torchtext's cache of it has ``.pt`` appended.

    Raises:
        DataError: If neither exists.
    """
    root = root_of(config)
    path = locate(root, config.word_vectors)
    cached = Path(f"{path}.pt")
    if not path.is_file() and not cached.is_file():
        raise DataError(
            f"data.word_vectors={config.word_vectors}: neither {path} nor {cached.name} exists; "
            "put the GloVe text file there or set data.word_vectors to its path"
        )
    return path


def tokens_path(config: DataConfig) -> Path:
    """Returns the path of the token features.

    Raises:
        DataError: If it does not exist.
    """
    root = root_of(config)
    path = locate(root, config.tokens)
    if not path.is_file():
        raise DataError(
            f"data.tokens={config.tokens}: no file {path}; write it with: cdn-tune data text {root} --model DIR, "
            "or set data.tokens to its path"
        )
    return path


def text_path(config: DataConfig) -> Path:
    """Returns the file that queries are read with, as `data.text` says: token features, or word vectors or their cache.

    Raises:
        DataError: If it does not exist.
    """
    if config.text == "tokens":
        return tokens_path(config)
    path = vectors_path(config)
    return path if path.is_file() else Path(f"{path}.pt")
