"""What tests share: a tiny planted dataset, a tiny experiment, one Ray for the session."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so it is in a shell's background, and in all that tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # or trials starve beside other tests
# Tests never touch the user's cache; set here so that the processes they start have it too.
os.environ["CDN_TUNE_CACHE"] = tempfile.mkdtemp(prefix="cdn-tune-tests-")

import pytest
import torch

from cdn_tune.config import Experiment, override
from cdn_tune.data.planted import plant
from cdn_tune.distributed.address import prepare

prepare(None)  # whatever addresses the commands have that are called in this process
torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["CDN_TUNE_CACHE"], ignore_errors=True)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "dataset": "charades_sta",
        "root": "",
        "feature_size": 16,
        "frames": 16,
        "word_vectors": "glove.planted.12d.txt",
        "word_size": 12,
        "val_fraction": 0.3,
    },
    "model": {
        "clips": 8,
        "hidden": 8,
        "query": {"layers": 1},
        "attention_steps": 2,
        "attention_size": 8,
        "map": {"layers": 2, "kernel_size": 3, "dynamic_layers": 1, "experts": 2},
    },
    "optim": {"lr": 3e-3},
    "train": {"epochs": 3, "batch_size": 8},
    "eval": {"recalls": [1, 5], "ious": [0.3, 0.5], "batch_size": 16},
}


# What is run first, so that nothing long runs alone in the end. The files of a line run in one process, which starts
# their Ray, their head node or their object store once.
FIRST = (
    "tuning/test_search api/test_search test_old_runs tuning/test_audit "
    "distributed/test_group_pool distributed/test_cluster_output distributed/test_ray",
    "report/test_browser",
    "distributed/test_cluster_jobs distributed/test_cluster_join",
    "training/test_object_store training/test_trial_sync training/test_tracking "
    "data/test_remote tuning/test_remote_checkpoints cli/test_runs",
    "tuning/test_virtual_search",
)
PLACES = {f"tests/{file}.py": place for place, files in enumerate(FIRST) for file in files.split()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; records what tests marked `compat` show."""
    items.sort(key=lambda item: PLACES.get(item.nodeid.partition("::")[0], len(FIRST)))
    for item in items:
        for marker in item.iter_markers("compat"):
            item.user_properties.append(("compat", marker.args[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distributes files, those of a line of `FIRST` together."""
    from xdist.scheduler import LoadFileScheduling

    class Lines(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return FIRST[PLACES[file]] if file in PLACES else file

    return Lines(config, log)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted dataset of a few videos."""
    root = tmp_path_factory.mktemp("data") / "planted"
    plant(root, videos=24, feature_size=16, word_size=12, frame_rate=2.0, seed=1)
    return root


@pytest.fixture
def tiny(planted: Path) -> Callable[..., Experiment]:
    """Makes tiny experiments on the planted data: ``tiny(**{"optim.lr": 0.1})``."""

    def make(**overrides: Any) -> Experiment:
        return override({**TINY, "data": {**TINY["data"], "root": str(planted)}}, overrides, "tiny")

    return make


@pytest.fixture(scope="session")
def ray_start() -> None:
    """Skips what needs `ray start` where that cannot run: it does not quote the path of its Python."""
    if " " in sys.executable:
        pytest.skip("`ray start` does not run from a path with a space")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of two CPUs that the tests of the session share."""
    from cdn_tune.distributed.cluster import connected

    with connected():
        yield


SEARCHED: dict[str, Any] = {
    "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "model.clip_pool": {"type": "categorical", "choices": ["mean", "attention"]},
    "model.attention_steps": {"type": "int", "low": 1, "high": 3, "when": {"model.clip_pool": "attention"}},
    "model.map.layers": {"type": "int", "low": 1, "high": 3},
    "model.map.kernel_size": {"type": "categorical", "choices": [3, 5], "per_layer": True},
}


@pytest.fixture
def entry() -> Callable[..., Any]:
    """Makes entries of a study: ``entry("pruned", [0.1, 0.2], lr=0.01, kernels=[3, 5], reason="lagged")``."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState, create_trial

    distributions: dict[str, Any] = {
        "optim.lr": FloatDistribution(1e-4, 1e-1, log=True),
        "model.clip_pool": CategoricalDistribution(("mean", "attention")),
        "model.attention_steps": IntDistribution(1, 3),
        "model.map.layers": IntDistribution(1, 3),
    }

    def make(
        state: str = "complete",
        curve: Any = (),
        lr: float = 1e-3,
        kernels: Any = (3, 3),
        steps: int | None = None,
        values: list[float] | None = None,
        **attributes: Any,
    ) -> Any:
        params: dict[str, Any] = {"optim.lr": lr, "model.clip_pool": "mean" if steps is None else "attention"}
        if steps is not None:
            params["model.attention_steps"] = steps
        params |= {"model.map.layers": len(kernels)}
        params |= {f"model.map.kernel_size[{layer}]": size for layer, size in enumerate(kernels)}
        best = [max(curve[: epoch + 1]) for epoch in range(len(curve))]
        note: dict[str, Any] = {"epochs": 3, "epoch": len(curve)}
        if curve:
            reached = best.index(best[-1]) + 1
            note |= {"best_epoch": reached, "val": {"R1@0.5": best[-1], "mIoU": best[-1] / 2}}
            note |= {"seconds": 10.0 * len(curve), "samples_per_second": 50.0}
        if state == "complete" and values is None:
            values = [best[-1]]
        return create_trial(
            state={"failed": TrialState.FAIL}.get(state) or TrialState[state.upper()],
            values=values,
            params=params,
            distributions={name: distributions.get(name, CategoricalDistribution((3, 5))) for name in params},
            user_attrs={**note, **attributes},
            intermediate_values=dict(enumerate(best, start=1)),
        )

    return make


@pytest.fixture
def make_search(tiny: Callable[..., Experiment], tmp_path: Path) -> Callable[..., Path]:
    """Makes the run folder of a search that has these entries on record; attributes are the study's.

    With ``database=True`` it is one that an earlier version began, whose study is a SQLite file.
    """
    import optuna
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    from cdn_tune.config.yaml import dump
    from cdn_tune.tuning.layout import DATABASE, JOURNAL

    def make(
        entries: list[Any], run: Path | None = None, space: Any = None, database: bool = False, **attributes: Any
    ) -> Path:
        run = run or tmp_path / "a run"
        run.mkdir(parents=True, exist_ok=True)
        (run / "manifest.json").write_text('{"kind": "search"}')
        (run / "experiment.yaml").write_text(dump(tiny().plain()))
        plain = {"name": "tiny-search", "experiment": "tiny", "parameters": SEARCHED, **(space or {})}
        (run / "search_space.yaml").write_text(dump(plain))
        directions = attributes.pop("directions", ["maximize"])
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage: Any = None
        if database:
            storage = RDBStorage(f"sqlite:///{run / DATABASE}")
        else:
            storage = JournalStorage(JournalFileBackend(str(run / JOURNAL)))
        study = optuna.create_study(storage=storage, study_name="tiny-search", directions=directions)
        study.add_trials(entries)
        for key, value in attributes.items():
            study.set_user_attr(key, value)
        if database:
            storage.remove_session()
            storage.engine.dispose()
        return run

    return make
