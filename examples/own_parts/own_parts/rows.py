"""What the entry points name: rows of cdn-tune's tables. What needs Optuna or torch is imported once it is used."""

from cdn_tune.config.tables import Metric, Sampler, StoppingRule

HALTON = Sampler("scrambled Halton sequence", build="own_parts.builders:halton")
HOPELESS = StoppingRule("below 1 % after its first epochs", build="own_parts.builders:hopeless")
START = Metric("share of queries whose first moment starts well", per_query="own_parts.builders:starts_well")
