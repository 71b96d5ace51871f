"""Weights, settings and sequences of the published SnAG, which are channel-first.

Shape letters: B videos, N queries, M most queries of a video, T frames, D feature size, L words, W word size, C width,
P points.
"""

import json
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from cdn_tune.config import DataConfig, ModelConfig
from cdn_tune.errors import CheckpointError, ConfigError
from cdn_tune.model.family import Batch
from cdn_tune.model.snag.config import EvaluationConfig, SnAGConfig, SnAGLoss
from cdn_tune.model.snag.decode import Candidates
from cdn_tune.model.snag.inference import candidates
from cdn_tune.model.snag.loss import assign
from cdn_tune.model.snag.network import Encoded, SnAG
from cdn_tune.model.snag.pyramid import Pyramid
from cdn_tune.model.weights import Arrays, Published, build_config, load_published, setting
from cdn_tune.moments.grid import Grid
from cdn_tune.moments.nms import Suppression, suppress

_KINDS: dict[str | None, Literal["soft", "hard", "none"]] = {"soft_nms": "soft", "nms": "hard", None: "none"}

# Our names and the published ones; applied in order.
_NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^text\.background$", "text_net.bkgd_token"),
    (r"^text\.embed\.", "text_net.embd_fc.conv."),
    (r"^text\.pool\.", "text_net.attn_pool.attn."),
    (r"^text\.blocks\.", "text_net.transformer."),
    (r"^video\.embed\.", "vid_net.embd_fc.conv."),
    (r"^video\.convs\.(\d+)\.", r"vid_net.embd_convs.\1.conv."),
    (r"^video\.norms\.", "vid_net.embd_norms."),
    (r"^video\.stem\.", "vid_net.stem."),
    (r"^video\.levels\.", "vid_net.branch."),
    (r"^fusion\.norm\.", "fusion.ln_out."),
    (r"^(fusion\.layers\.\d+)\.video_norm\.", r"\1.ln_xattn_q."),
    (r"^(fusion\.layers\.\d+)\.text_norm\.", r"\1.ln_xattn_kv."),
    (r"^(fusion\.layers\.\d+)\.conv\.", r"\1.xattn.q_conv.conv."),
    (r"^(fusion\.layers\.\d+)\.conv_norm\.", r"\1.xattn.q_norm."),
    (r"^(fusion\.layers\.\d+)\.attention\.", r"\1.xattn.xattn."),
    (r"^score\.out\.", "cls_head.cls_head.conv."),
    (r"^offset\.out\.", "reg_head.reg_head.conv."),
    (r"^offset\.level_scales\.(\d+)$", r"reg_head.scales.\1.scale"),
    (r"^score\.", "cls_head."),
    (r"^offset\.", "reg_head."),
    (r"^(\w+_head\.convs\.\d+)\.", r"\1.conv."),
    (r"\.convs\.(query|key|value)\.", lambda found: f".attn.{found[1][0]}_conv.conv."),
    (r"\.conv_norms\.(query|key|value)\.", lambda found: f".attn.{found[1][0]}_norm."),
    (r"\.attention_norm\.", ".ln_attn."),
    (r"\.attention_scale\.", ".drop_path_attn."),
    (r"\.attention\.", ".attn.attn."),
    (r"\.feed_forward_norm\.", ".ln_ffn."),
    (r"\.feed_forward_scale\.", ".drop_path_ffn."),
    (r"\.feed_forward\.expand\.", ".ffn.fc."),
    (r"\.feed_forward\.reduce\.", ".ffn.proj."),
    (r"(attn|attn_pool\.attn)\.out\.", r"\1.proj."),
)


def published_name(ours: str) -> str:
    """Returns the published name of a parameter."""
    for pattern, theirs in _NAMES:
        ours = re.sub(pattern, theirs, ours)
    return ours


def published_config(config: Mapping[str, Any]) -> tuple[SnAGConfig, SnAGLoss]:
    """Returns the configuration that behaves as the published model with these options, defaults filled in.

    Raises:
        CheckpointError: If an option is missing or impossible.
    """
    try:
        model, train, evaluation = config["model"], config["train"], config["eval"]
        text, video, fusion, points = model["text_net"], model["vid_net"], model["fusion"], config["pt_gen"]
        if points.get("use_offset"):
            raise CheckpointError(
                "published settings: pt_gen.use_offset=true is not offered; no published model has it"
            )
        if text["embd_dim"] is None:
            raise CheckpointError("published settings: text_net.embd_dim=null has no width to fuse; give the word size")
        convs, stem, levels = video["arch"]
        values = {
            "text": {
                "encoder": text["name"],
                "hidden": text["embd_dim"],
                "heads": text["n_heads"],
                "words": text["max_seq_len"],
                "positions": text["use_abs_pe"],
                "background": text["use_bkgd_token"],
                **({"layers": text["n_layers"], **_dropouts(text)} if text["name"] == "transformer" else {}),
            },
            "video": {
                "hidden": video["embd_dim"],
                "convs": convs,
                "stem": stem,
                "levels": levels,
                "window": video["mha_win_size"],
                "heads": video["n_heads"],
                "length": video["max_seq_len"],
                "stride": video["stride"],
                "positions": video["use_abs_pe"],
                **_dropouts(video),
            },
            "fusion": {
                "layers": fusion["n_layers"],
                "heads": fusion["n_heads"],
                "mode": fusion["xattn_mode"],
                **_dropouts(fusion),
            },
            "head": {
                "score_layers": model["cls_head"]["n_layers"],
                "offset_layers": model["reg_head"]["n_layers"],
                "prior": float(model["cls_head"]["prior_prob"]),
            },
            "points": {"first_range": float(points["regression_range"]), "overlap": float(points["sigma"])},
            "evaluation": _evaluation(evaluation),
        }
        loss = {
            "centre_radius": float(train["center_sampling_radius"]) if train["center_sampling"] == "radius" else None,
            "regression": train["reg_loss"],
            "regression_weight": float(train["loss_weight"]),
            "normaliser": float(train["loss_norm"]),
            "normaliser_momentum": float(train["loss_norm_momentum"]),
            "normaliser_resumes": False,
        }
        return build_config(SnAGConfig, values), build_config(SnAGLoss, loss)
    except KeyError as error:
        raise CheckpointError(f"published settings: no {error.args[0]!r}; is it another family's?") from error


def _dropouts(part: Mapping[str, Any]) -> dict[str, float]:
    theirs = {"dropout": "proj_pdrop", "attention_dropout": "attn_pdrop", "path_dropout": "path_pdrop"}
    return {ours: float(part[option]) for ours, option in theirs.items()}


def _evaluation(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "min_score": float(options["pre_nms_thresh"]),
        "candidates": options["pre_nms_topk"],
        "min_length": float(options["seg_len_thresh"]),
    }


def from_published(state: Arrays, config: Mapping[str, Any]) -> "PublishedSnag":
    """Returns a new model with weights under the published names; it computes what the published model computes.

    Args:
        state: Tensors or arrays by published name; a leading ``module.`` is accepted.
        config: The published options they were trained with, defaults filled in.

    Raises:
        CheckpointError: If an option is wrong, or entries are missing, unknown, misshapen or not finite (named).
    """
    ours, loss = published_config(config)
    video_size, text_size = (setting(config, f"model.{net}.in_dim") for net in ("vid_net", "text_net"))
    snag = SnAG(ours, video_size, text_size, loss)
    load_published(snag, state, published_names(snag))
    return PublishedSnag(snag)


def import_state(state: Arrays, model: ModelConfig, data: DataConfig) -> SnAG:
    """Returns an experiment's network with published weights; see `cdn_tune.model.published.import_state`."""
    if not isinstance(model, SnAGConfig):
        raise ConfigError(f"model.name={model.name}: these weights are those of a snag; change the experiment")
    snag = SnAG(model, data.feature_size, data.word_size)
    load_published(snag, state, published_names(snag))
    return snag


def published_names(model: SnAG) -> list[tuple[str, str]]:
    """Returns our name and the published name of every entry of a model's state that the published one has."""
    return [(name, published_name(name)) for name, _ in model.named_parameters()]


class PublishedSnag(Published):
    """SnAG that takes and gives the published code's channel-first sequences, by the recorded arrays' names."""

    def __init__(self, model: SnAG) -> None:
        super().__init__()
        self.model = model

    def raw(self, inputs: Arrays) -> dict[str, Tensor]:
        """Returns what the network computes.

        Args:
            inputs: ``vid`` [B, D, T], ``vid_mask`` [B, T], ``text`` [B, M, W, L], ``text_mask`` [B, M, L] and
                ``text_size`` [B].

        Returns:
            ``logits`` [N, P], ``offsets`` [N, P, 2], ``mask`` [N, P], ``points`` [P, 4], ``level_points``; besides
            ``text``, ``text_mask``, and of every level ``fpn.l``, ``fpn_mask.l`` and ``fused.l``.
        """
        video, video_mask, times, words, word_mask, rows = _inputs(inputs)
        text, text_mask = self.model.text(words, word_mask)
        pyramid: Pyramid = self.model.video(video, video_mask)
        fused: Pyramid = self.model.fuse(pyramid.rows(rows), text, text_mask)
        output = self.model.heads(Encoded(fused, times[rows]))
        found = {"logits": output.logits, "offsets": output.offsets, "mask": output.mask}
        found |= {"text": text.transpose(1, 2), "text_mask": text_mask, "points": torch.stack(output.points, dim=1)}
        found["level_points"] = torch.tensor([size - 1 for size in pyramid.sizes])
        for name, values in (("fpn", pyramid.features), ("fused", fused.features)):
            found |= {f"{name}.{level}": x.transpose(1, 2) for level, x in enumerate(pyramid.split(values))}
        return found | {f"fpn_mask.{level}": mask for level, mask in enumerate(pyramid.split(pyramid.mask))}

    def targets(self, inputs: Arrays) -> dict[str, Tensor]:
        """Returns ``labels`` [N, P], ``offsets`` [N, P, 2] of all points, and ``positives``, a count of real ones."""
        with torch.no_grad():
            output = self.model(*_inputs(inputs))
        labels, offsets = assign(output.points, self._moments(inputs), self.model.loss_config.centre_radius)
        return {"labels": labels, "offsets": offsets, "positives": (labels & output.mask).sum()}

    def losses(self, inputs: Arrays) -> dict[str, Tensor]:
        """Returns the losses of one training step and moves the running normaliser.

        Args:
            inputs: As for `raw`, and ``target`` [N, 2], starts and ends in input steps.

        Returns:
            ``total``, ``cls``, ``reg`` (without its weight) and the ``loss_norm`` they were divided by.
        """
        norm, given = self.model.normaliser.clone(), _inputs(inputs)
        self.model.start_step(len(given[-1]))
        batch = SimpleNamespace(moments=torch.as_tensor(inputs["target"]).double())
        total, parts = self.model.loss(self.model(*given), cast(Batch, batch))
        self.model.end_step(lambda positives: positives)
        return {"total": total, "cls": parts["score_loss"], "reg": parts["span_loss"], "loss_norm": norm}

    def predict(self, index: int, arrays: Arrays) -> list[tuple[Tensor, Tensor]]:
        """Returns the answers of a recorded case: per query spans in seconds [K, 2] and scores [K], best first."""
        config = json.loads(str(arrays[f"predict.{index}.config"]))
        grid = Grid(config["clip_size"], config["clip_stride"], config["fps"])
        answers = []
        for spans, scores in self.candidates(index, arrays):
            spans, scores = nms(spans, scores, config["nms"])
            seconds = grid.to_seconds(spans.double() * config["vid_stride"]).clamp(0, config["duration"])
            answers.append((seconds.float(), scores))
        return answers

    def candidates(self, index: int, arrays: Arrays) -> list[tuple[Tensor, Tensor]]:
        """Returns the candidates of a recorded case: per query spans in steps of the first level, and scores."""
        prefix = f"predict.{index}."
        config = json.loads(str(arrays[f"{prefix}config"]))
        video, own = torch.as_tensor(arrays[f"{prefix}vid"]), self.model.config.video
        count = sum(1 for key in arrays if str(key).startswith(f"{prefix}text."))
        queries = [torch.as_tensor(arrays[f"{prefix}text.{query}"]).T for query in range(count)]
        stated = {"input_vid_len": own.length * own.stride, "min_chunk_size": own.coarsest, "vid_stride": own.stride}
        for key, value in stated.items():
            if config[key] != value:
                raise CheckpointError(f"{prefix}config: {key}={config[key]}; this model has {value}")
        window = (config["window_size"], config["window_stride"]) if config["window_size"] else None
        external = arrays.get(f"{prefix}ext_scores")
        found = candidates(
            self.model,
            video.T,
            queries,
            window,
            None if external is None else torch.as_tensor(external),
            EvaluationConfig.model_validate(_evaluation(config)),
        )
        return [_found(each) for each in found]

    def _moments(self, inputs: Arrays) -> Tensor:
        return torch.as_tensor(inputs["target"]) / self.model.config.video.stride


def _inputs(inputs: Arrays) -> tuple[Tensor, ...]:
    """Returns what `SnAG.forward` takes; seconds are input steps."""
    video, video_mask, text, text_mask, size = (
        torch.as_tensor(inputs[name]) for name in ("vid", "vid_mask", "text", "text_mask", "text_size")
    )
    real = torch.arange(text.shape[1], device=size.device) < size[:, None]  # [B, M]
    rows = torch.arange(len(video), device=size.device).repeat_interleave(size)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64, device=size.device).expand(len(video), 2)
    words, word_mask = text[real].transpose(1, 2), text_mask[real].bool()
    return video.transpose(1, 2), video_mask.bool(), times, words, word_mask, rows


def _found(answers: Candidates) -> tuple[Tensor, Tensor]:
    """Returns the candidates of one query that there are."""
    there = answers.scores[0] > -torch.inf
    return answers.spans[0, there], answers.scores[0, there]


def nms(segments: Any, scores: Any, params: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns the best of a query's spans [K, 2] and scores [K] as published, in seconds or any unit.

    Args:
        segments: [N, 2].
        scores: [N], in [0, 1].
        params: ``mode`` (soft_nms, nms or null), ``iou_thresh``, ``min_score``, ``max_num_segs``, ``sigma`` and
            ``voting_thresh``.
    """
    segments, scores = torch.as_tensor(segments), torch.as_tensor(scores)
    if params["mode"] not in _KINDS:
        raise CheckpointError(f"nms: mode={params['mode']!r} is unknown; use soft_nms, nms or null")
    how = Suppression(
        kind=_KINDS[params["mode"]],
        threshold=params["iou_thresh"],
        sigma=params["sigma"],
        min_score=params["min_score"],
        voting=params["voting_thresh"],
        snag=True,
    )
    spans, best = suppress(scores[None], segments[None], params["max_num_segs"], how)
    there = ~best[0].isnan()
    return spans[0, there].to(segments.dtype), best[0, there]
