"""Predicted learning curves: exact where they were recorded, near in between, noisy as recorded."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from cdn_tune.tuning.simulation.curves import Curves, Recorded
from cdn_tune.tuning.simulation.landscape import DrawnCurves, Landscape

from .tables import EPOCHS, make_curves, make_header, make_record


def as_run(curves: Curves) -> Curves:
    """The curves as if a search had left them: each configuration once, without test."""
    records = [record.model_copy(update={"test": {}}) for record in curves.records if record.seed == 0]
    return replace(curves, is_run=True, records=records, ended=[EPOCHS] * len(records))


def values(landscape: Landscape, parameters: dict[str, Any], seed: int = 0) -> list[float]:
    found = landscape.predict(parameters, np.random.default_rng(seed))
    return [point.val["R1@0.5"] for point in found.points]


@pytest.mark.parametrize("is_run", [False, True])
def test_a_recorded_configuration_has_its_recorded_curve(is_run: bool) -> None:
    curves = as_run(make_curves()) if is_run else make_curves()
    landscape = Landscape(curves, ["R1@0.5", "mIoU"])
    for place in (0, 7, len(curves.records) - 1):
        own = curves.records[place]
        seeds = [other for other in curves.records if other.parameters == own.parameters]
        found = landscape.predict(own.parameters, np.random.default_rng(0))
        assert any(values(landscape, dict(own.parameters)) == list(other.val["R1@0.5"]) for other in seeds)
        assert found.distance == 0
        assert found.start_seconds == 0.5
        np.testing.assert_allclose(np.cumsum([point.seconds for point in found.points]), own.seconds, rtol=1e-9)
        assert [point.steps for point in found.points] == [own.steps] * EPOCHS


def test_both_seeds_of_a_configuration_are_drawn() -> None:
    curves = make_curves()
    landscape, point = Landscape(curves, ["R1@0.5"]), dict(curves.records[0].parameters)
    assert len({tuple(values(landscape, point, seed)) for seed in range(20)}) == 2


def test_between_recorded_configurations_curves_are_near_the_true_ones() -> None:
    landscape = Landscape(make_curves(200, noise=0.0), ["R1@0.5"])
    draw = np.random.default_rng(1)
    for _ in range(50):
        point = {"optim.lr": float(10 ** draw.uniform(-3.8, -1.2)), "model.map.layers": int(draw.integers(1, 5))}
        true = make_record(point, 0).val["R1@0.5"]
        assert np.abs(np.array(values(landscape, point)) - true).max() < 0.03


def test_rank_correlation_tells_curves_that_follow_from_parameters_from_those_that_do_not() -> None:
    curves = make_curves(80)
    assert Landscape(curves, ["R1@0.5"]).rank_correlation() > 0.9
    draw = np.random.default_rng(0)
    points = [curves.records[place].parameters for place in draw.permutation(len(curves.records))]
    shuffled = [
        record.model_copy(update={"parameters": point}) for record, point in zip(curves.records, points, strict=True)
    ]
    assert abs(Landscape(replace(curves, records=shuffled), ["R1@0.5"]).rank_correlation()) < 0.4
    assert np.isnan(Landscape(make_curves(5), ["R1@0.5"]).rank_correlation())


def test_a_parameter_that_matters_not_does_not_count() -> None:
    header = make_header(
        parameters={**make_header().plain()["parameters"], "seed": {"type": "int", "low": 0, "high": 99}}
    )
    draw = np.random.default_rng(0)
    records = [
        record.model_copy(update={"parameters": {**record.parameters, "seed": int(draw.integers(0, 100))}})
        for record in make_curves(80, 1).records
    ]
    curves = Curves("made-up", False, header, records, [EPOCHS] * len(records))
    landscape = Landscape(curves, ["R1@0.5"])
    points = [dict(record.parameters) for record in make_curves(30, 1).records]
    found = [values(landscape, {**point, "seed": 50})[-1] for point in points]
    assert spearmanr(found, [make_record(point, 0).val["R1@0.5"][-1] for point in points]).statistic > 0.9


def test_of_a_run_noise_is_drawn_and_the_truth_has_none() -> None:
    landscape = Landscape(as_run(make_curves(60, noise=0.05)), ["R1@0.5"])
    point = {"optim.lr": 4e-3, "model.map.layers": 2}
    found = [landscape.predict(point, np.random.default_rng(seed)) for seed in range(40)]
    assert len({tuple(each.points[0].val.values()) for each in found}) > 3
    assert all(np.array_equal(each.truth, found[0].truth) for each in found)
    assert not landscape.has_test
    assert 0.5 < landscape.best_truth < 0.85


def test_what_the_table_does_not_know_is_apart_from_all() -> None:
    landscape = Landscape(make_curves(), ["R1@0.5"], {"model.map.layers": 2})
    draw = np.random.default_rng(0)
    known = landscape.predict({"optim.lr": 1e-3}, draw)  # the other parameter is fixed
    assert known.distance < 0.1
    assert landscape.predict({"optim.lr": 1e-3, "model.hidden": 8}, draw).distance == known.distance
    absent = Landscape(make_curves(), ["R1@0.5"]).predict({"optim.lr": 1e-3}, draw)
    assert absent.distance >= np.sqrt(0.5)


def test_values_of_layers_and_choices_are_told_apart() -> None:
    parameters = {
        "model.proposals": {"type": "categorical", "choices": ["pool", "conv"]},
        "model.map.kernel_size": {"type": "categorical", "choices": [3, 5], "per_layer": True},
    }
    records: list[Recorded] = []
    for place, kernels in enumerate(([3, 3], [3, 5], [5, 3], [5, 5])):
        for proposals in ("pool", "conv"):
            point = {f"model.map.kernel_size[{layer}]": kernel for layer, kernel in enumerate(kernels)}
            plain = make_record({"optim.lr": 1e-3, "model.map.layers": 1}, 0).plain()
            flat = [0.1 * (2 * place + (proposals == "conv"))] * EPOCHS
            plain |= {"parameters": {**point, "model.proposals": proposals}, "val": {"R1@0.5": flat}, "test": {}}
            records.append(Recorded.model_validate(plain))
    curves = Curves("made-up", False, make_header(parameters=parameters), records, [EPOCHS] * len(records))
    landscape = Landscape(curves, ["R1@0.5"])
    asked = {"model.proposals": "conv", "model.map.kernel_size": [5, 3]}
    assert values(landscape, asked)[0] == pytest.approx(0.5)


def test_curves_of_a_search_follow_from_its_seed_and_the_number() -> None:
    landscape = Landscape(as_run(make_curves()), ["R1@0.5"])
    point = {"optim.lr": 4e-3, "model.map.layers": 2}
    one, same, other = DrawnCurves(landscape, 3), DrawnCurves(landscape, 3), DrawnCurves(landscape, 4)
    assert one(5, point) == same(5, point)
    assert any(one(number, point) != other(number, point) for number in range(10))
    assert one.start_seconds(5) == 0.5
