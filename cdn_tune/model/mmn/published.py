"""MMN as published: its names, its settings, its inputs and outputs. Its DistilBERT is not part of it here."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cdn_tune.config import DataConfig, ModelConfig
from cdn_tune.errors import CheckpointError, ConfigError
from cdn_tune.model.mmn.config import MMNConfig, MMNLoss
from cdn_tune.model.mmn.network import MMN, MMNOutput
from cdn_tune.model.weights import Arrays, Published, as_tensors, build_config, load_published, recorded_inputs, setting

_BERT = "text_encoder.bert."  # entries of its checkpoints that token features stand for


class PublishedMMN(Published):
    """MMN, by the names of the recorded arrays; tokens stand for DistilBERT's outputs.

    Args:
        model: The network.
        threshold: IoU above which suppression drops a moment.
    """

    def __init__(self, model: MMN, threshold: float) -> None:
        super().__init__()
        self.model, self.threshold = model, threshold

    def raw(self, inputs: Arrays) -> dict[str, Tensor]:
        """Returns ``contrastive_scores`` and ``iou_scores`` of the valid cells, row by row [B, M]."""
        output = self._output(as_tensors(inputs))
        return {"contrastive_scores": output.cosines(0), "iou_scores": self.model.iou_scores(output)}

    def losses(self, inputs: Arrays) -> dict[str, Tensor]:
        """Returns ``loss_iou``, ``loss_vid``, ``loss_sent`` (these two times their weight) and ``total``."""
        given = as_tensors(inputs)
        ious = given["iou2d"].flatten(1)[:, self.model.proposals.by_row]
        total, parts = self.model.losses(self._output(given), ious, given["moments"])
        weight = self.model.loss_config.contrastive_weight
        weighted = {name: parts[name] * (1 if name == "loss_iou" else weight) for name in parts}
        return {**weighted, "total": total}

    @torch.no_grad()
    def predict(self, index: int, arrays: Arrays) -> list[tuple[Tensor, Tensor]]:
        """Returns all moments of a recorded sentence that suppression leaves."""
        given = recorded_inputs(arrays)
        output = self._output(given)
        found = self.model.spans(output, given["durations"][output.rows])
        moments, scores = self.model.suppress(found, found.scores.shape[1], self.threshold)
        kept = ~scores[index].isnan()
        return [(moments[index][kept], scores[index][kept])]

    def _output(self, given: Mapping[str, Tensor]) -> MMNOutput:
        tokens, sentences = given["tokens"], given["num_sentences"]
        rows = torch.arange(len(sentences), device=tokens.device).repeat_interleave(sentences)
        mask = torch.arange(tokens.shape[1], device=tokens.device) < given["word_lens"][:, None]
        return MMNOutput(self.model.encode(given["feats"]), self.model.sentence(tokens, mask), rows)


def from_published(state: Arrays, config: Mapping[str, Any]) -> PublishedMMN:
    """Returns a model with weights under the published names.

    Args:
        state: Tensors or arrays by published name; DistilBERT's are left out.
        config: The published configuration tree, with ``TEXT_DIM`` (size of a token) and ``EPOCH`` (of the loss).

    Raises:
        CheckpointError: If a setting is missing or impossible, or entries do not fit (named).
    """
    mmn = setting(config, "MODEL.MMN")
    counts, hidden, clips = (
        setting(mmn, "FEAT2D.POOLING_COUNTS"),
        setting(mmn, "FEATPOOL.HIDDEN_SIZE"),
        mmn["NUM_CLIPS"],
    )
    ours = {
        "FEATPOOL.KERNEL_SIZE": setting(config, "INPUT.NUM_PRE_CLIPS") // clips,
        "PREDICTOR.HIDDEN_SIZE": hidden,
        "LOSS.BCE_WEIGHT": 1,
        "LOSS.PAIRWISE_SENT_WEIGHT": 0,
    }
    for name, only in ours.items():
        if setting(mmn, name) != only:
            told = f"MODEL.MMN.{name}={setting(mmn, name)} is not supported, {only} alone is"
            raise CheckpointError(f"published settings: {told}")
    values = {
        "clips": clips,
        "hidden": hidden,
        "joint": setting(mmn, "JOINT_SPACE_SIZE"),
        "proposals": setting(mmn, "FEAT2D.NAME"),
        "scale_layers": [counts[0] + 1, *counts[1:]],  # they leave out the diagonal
        "map": {
            "layers": setting(mmn, "PREDICTOR.NUM_STACK_LAYERS"),
            "kernel_size": setting(mmn, "PREDICTOR.KERNEL_SIZE"),
        },
        "score_power": setting(config, "TEST.CONTRASTIVE_SCORE_POW"),
        "overlaps": "rounded",
    }
    names = {
        "min_iou": "MIN_IOU",
        "max_iou": "MAX_IOU",
        "contrastive_weight": "CONTRASTIVE_WEIGHT",
        "positives": "NUM_POSTIVE_VIDEO_PROPOSAL",
        "margin": "MARGIN",
        "video_temperature": "TAU_VIDEO",
        "sentence_temperature": "TAU_SENT",
        "negative_iou": "NEGATIVE_VIDEO_IOU",
        "sentence_iou": "SENT_REMOVAL_IOU",
    }
    loss = {key: setting(mmn, f"LOSS.{theirs}") for key, theirs in names.items()}
    loss |= {"contrastive_epochs": setting(config, "SOLVER.ONLY_IOU"), "count_removed": True}
    network = MMN(
        build_config(MMNConfig, values),
        setting(mmn, "FEATPOOL.INPUT_SIZE"),
        setting(config, "TEXT_DIM"),
        build_config(MMNLoss, loss),
    )
    network.start_epoch(setting(config, "EPOCH"))
    load_published(network, _without_bert(state), published_names(network.config))
    return PublishedMMN(network, setting(config, "TEST.NMS_THRESH"))


def import_state(state: Arrays, model: ModelConfig, data: DataConfig) -> MMN:
    """Returns an experiment's network with published weights; see `cdn_tune.model.published.import_state`."""
    if not isinstance(model, MMNConfig):
        raise ConfigError(f"model.name={model.name}: these weights are those of an mmn; change the experiment")
    network = MMN(model.model_copy(update={"overlaps": "rounded"}), data.feature_size, data.word_size)
    load_published(network, _without_bert(state), published_names(network.config))
    return network


def published_names(config: MMNConfig) -> Iterator[tuple[str, str]]:
    """Yields our name and the published name of every entry of a model's state."""
    modules = {
        "clip_pool.frame": "featpool.conv",
        "moment_contrastive": "proposal_conv.conv1x1_contrastive",
        "moment_iou": "proposal_conv.conv1x1_iou",
        "sentence.norm": "text_encoder.layernorm",
        "sentence.iou": "text_encoder.fc_out1",
        "sentence.contrastive": "text_encoder.fc_out2",
    }
    if config.proposals == "conv":  # the first of ours is no convolution
        modules |= {f"proposals.layers.{at}": f"feat2d.convs.{at - 1}" for at in range(1, sum(config.scales))}
    for layer in range(config.map.layers):
        modules |= {
            f"map.convs.{layer}": f"proposal_conv.convs.{layer}",
            f"map.norms.{layer}": f"proposal_conv.bn.{layer}",
        }
    for ours, theirs in modules.items():
        statistics = ("running_mean", "running_var", "num_batches_tracked") if ".norms." in ours else ()
        for leaf in ("weight", "bias", *statistics):
            yield f"{ours}.{leaf}", f"{theirs}.{leaf}"


def _without_bert(state: Arrays) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.removeprefix("module.").startswith(_BERT)}
