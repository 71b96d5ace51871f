"""`cdn_tune.load`: a trained model."""

from cdn_tune.api.arguments import checked
from cdn_tune.evaluation import retriever

load = checked(retriever.load)
