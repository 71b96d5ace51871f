"""The pages about search spaces: their examples load, their tables are complete."""

import re
from pathlib import Path

from cdn_tune.config import load_space
from cdn_tune.config.expression import COSTS, parse_expression
from cdn_tune.config.space import MEASURED_COSTS
from cdn_tune.config.tables import SAMPLERS, STOPPING_RULES
from cdn_tune.config.yaml import dump, parse

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "how-to/search.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_first_space_loads(tmp_path: Path) -> None:
    path = tmp_path / "my-space.yaml"
    first = (DOCS / "tutorials/first-search.md").read_text(encoding="utf-8")
    path.write_text(first.split('```yaml title="my-space.yaml"\n')[1].split("```")[0])
    space, experiment = load_space(path)
    assert [objective.metric for objective in space.objectives] == ["R1@0.5", "parameters"]
    assert set(space.parameters) == {"model.hidden", "model.map.layers", "optim.lr"}
    assert experiment.name == "demo-small"


def test_every_example_of_a_parameter_loads(tmp_path: Path) -> None:
    rows = re.findall(r"`([a-z_.]+: \{type: .*?\})`", PAGE)
    fragments = [line.strip() for block in BLOCKS for line in block.splitlines() if "{type:" in line]
    assert len(rows) == 4
    assert len(fragments) == 5
    for text in [*rows, *fragments]:
        parameters = {"model.map.layers": {"type": "int", "low": 2, "high": 4}, **parse(text)}
        if "dynamic_layers" in text:
            parameters["model.map.dynamic_layers"] = {"type": "int", "low": 0, "high": 2}
        if "attention" in text:
            parameters["model.clip_pool"] = {"type": "categorical", "choices": ["attention", "mean"]}
        path = tmp_path / "space.yaml"
        path.write_text(dump({"name": "s", "experiment": "experiments/demo/small.yaml", "parameters": parameters}))
        load_space(path)


def test_examples_of_constraints_and_budgets_load(tmp_path: Path) -> None:
    constraints = next(parse(block)["constraints"] for block in BLOCKS if block.startswith("constraints:"))
    for text in constraints:
        parse_expression(text)
    budget = next(parse(block) for block in BLOCKS if "budget:" in block)
    parameters = {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2}}
    space = {"name": "s", "experiment": "experiments/demo/small.yaml", "parameters": parameters}
    path = tmp_path / "space.yaml"
    path.write_text(dump({**space, **budget, "constraints": constraints}))
    loaded, _ = load_space(path)
    assert (loaded.budget.target, loaded.keep, len(loaded.constraints)) == (0.45, 3, 5)


def test_tables_are_complete() -> None:
    shipped = [path.stem for path in (ROOT / "search_spaces").glob("*.yaml")]
    text = PAGE + (DOCS / "reference/shipped.md").read_text(encoding="utf-8")
    for name in (*SAMPLERS, *STOPPING_RULES, *COSTS, *MEASURED_COSTS, *shipped):
        assert f"`{name}`" in text, name
