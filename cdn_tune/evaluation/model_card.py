"""The model card: what an exported model is, how it was measured, what it is for and what it is not for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdn_tune import __version__
from cdn_tune.config import Nms
from cdn_tune.data.mark import DRAWN, Mark, marked
from cdn_tune.evaluation import graph
from cdn_tune.evaluation.probe_file import TITLES, VERDICTS, ProbeFile, share
from cdn_tune.training.runs.checkpoint import Checkpoint

_FILES = {
    "experiment.yaml": "the experiment that trained it, folders left out",
    "model.safetensors": "the weights",
    "words.json": "the words that have a vector",
    "word_vectors.safetensors": "their vectors, in the same order",
    "model.pt2": "the graph for `torch.export.load`",
    "model.onnx": "the graph for ONNX runtimes",
    "model.onnx.data": "the weights of `model.onnx`",
}


_LINE = 5000  # characters of a warning, whose parts are cut already
# What Markdown would read as markup, HTML or a link.
_MARKUP = re.compile(r"[\\`*_\[\]<>&|~]|:(?=//)|(?<=www)\.", re.IGNORECASE)


@dataclass(frozen=True)
class Facts:
    """What the card states."""

    run: str  # its name
    checkpoint: Checkpoint
    test: Mapping[str, Any] | None  # test metrics (see `read_test_result`)
    why_no_test: str
    words: int  # how many have a vector in the folder
    all_words: bool  # whether these are all of the vectors file, not only those of the dataset
    nms: Nms | None = None  # suppression of overlaps, chosen on val; None: the experiment's
    probe: ProbeFile | None = None  # the last probe, if it was of this checkpoint
    text_model: str | None = None  # the language model whose token features it reads, in place of words


def model_card(facts: Facts, files: Sequence[str]) -> str:
    """Returns the card as Markdown; `files` names those of the folder besides the card and ``config.json``."""
    experiment = facts.checkpoint.experiment
    parts = [
        [f"# {experiment.name}", *_planted(facts.checkpoint.planted), _summary(facts)],
        ["## Use", _USE.format(size=experiment.data.feature_size), *_text_model(facts)],
        ["## Training data", _data(facts)],
        ["## Protocol", _protocol(facts)],
        ["## Results", *_results(facts)],
        *([["## Does it look at the video?", *_probe(facts.probe)]] if facts.probe else []),
        ["## Intended use", _INTENDED],
        ["## Limits", _limits(facts)],
        ["## Licence", _LICENCE],
        ["## Files", "\n".join(f"- `{name}`: {_FILES.get(name, 'see the documentation')}" for name in files)],
    ]
    if any(name in files for name in ("model.pt2", "model.onnx")):
        parts.append(["## Graphs", _graphs(facts.checkpoint)])
    return "\n\n".join("\n\n".join(part) for part in parts) + "\n"


_USE = """\
```python
from cdn_tune import load

retriever = load("this/folder")
moments = retriever.retrieve(features, duration, ["a person opens the door"], top=5)
```

`features` are frame features `[frames, {size}]` at equal distances over the whole video, `duration` is its length in
seconds. Each moment has a start and an end in seconds and a score in [0, 1]."""


def _plain(text: str, longest: int = 200) -> str:
    """Returns a text of a file, in one line and cut, so that Markdown shows it as it is."""
    shown = text if len(text) <= longest else f"{text[:longest]}..."
    return _MARKUP.sub(r"\\\g<0>", "".join(each if each.isprintable() else "\ufffd" for each in shown))


def _planted(mark: Mark) -> list[str]:
    if not mark:
        return []
    made = "features of drawn videos" if mark == DRAWN else "synthetic features"
    return [
        f"> **{marked(mark).capitalize()}.** This model was trained on {made}. Its numbers say that the tool works, "
        "nothing about real videos; never put them beside published ones."
    ]


_INTENDED = """\
Research on video moment retrieval: given a sentence and a video, propose where the sentence happens. Answers are ranked
proposals, for a person to look at; they are not evidence that something happened, or did not. Not meant for
surveillance, or for any decision about people."""

_LICENCE = """\
cdn-tune, the code that trains and opens this model, is under the MIT licence. That says nothing about the data: the
videos, annotations, features and word vectors that the weights were made from have licences of their own, which may
limit what the weights may be used for. Whoever passes them on has to check that."""


def _text_model(facts: Facts) -> list[str]:
    if facts.text_model is None:
        return []
    return [
        f"It reads token features of size {facts.checkpoint.experiment.data.word_size}: the last hidden state of the "
        f"language model `{facts.text_model}`, which is not in this folder. `load` takes its folder as `text_model`; "
        "other weights than those of training are refused."
    ]


def _summary(facts: Facts) -> str:
    model = facts.checkpoint.experiment.model
    parameters = sum(weight.numel() for weight in facts.checkpoint.model.parameters())
    sizes = ", ".join(filter(None, [model.summary(), f"{parameters:,} parameters"]))
    return (
        f"A {model.label} model (`model.name: {model.name}`) for video moment retrieval, exported by cdn-tune "
        f"{__version__} from the run `{facts.run}`: {sizes}."
    )


def _data(facts: Facts) -> str:
    data = facts.checkpoint.experiment.data
    read = f"L2-normalised and averaged to {data.frames} per video"
    if facts.checkpoint.experiment.model.inputs.sequences:
        read = f"resized to {data.sequence.length} per video" if data.sequence.form == "fixed" else "as they are"
    of = "all of the vectors file" if facts.all_words else "those of the dataset's queries"
    words = f"word vectors of size {data.word_size}. {facts.words:,} words have a vector in this folder: {of}. Other "
    words += "words count as unknown."
    if facts.text_model is not None:
        words = f"token features of size {data.word_size} of `{facts.text_model}`."
    about = f", {marked(facts.checkpoint.planted)}" if facts.checkpoint.planted else ""
    return f"Dataset `{data.dataset}`{about}. Frame features of size {data.feature_size}, {read}; {words}"


def _protocol(facts: Facts) -> str:
    checkpoint = facts.checkpoint
    if checkpoint.value is None:
        return "The weights were imported from the published implementation; nothing was chosen on val here."
    metric = checkpoint.experiment.eval.metric
    suppression = str(checkpoint.model.complete(facts.nms or checkpoint.experiment.eval.suppression))
    if facts.nms is not None:
        suppression += ", chosen on val after training"
    return (
        f"Trained on train. Epoch {checkpoint.epoch} (and, in a search, the trial) was chosen by {metric} on val; the "
        f"test split took no part in any choice. Seed {checkpoint.experiment.seed}, {suppression}."
    )


def _results(facts: Facts) -> list[str]:
    label = f"{marked(facts.checkpoint.planted)}, in %" if facts.checkpoint.planted else "in %"
    rows = {"val (chosen on)": dict(facts.checkpoint.val)} if facts.checkpoint.val else {}
    if facts.test is not None:
        rows["test"] = facts.test["metrics"]
        rows |= {f"test, part {_plain(name)}": values for name, values in facts.test["parts"].items()}
        rows |= {f"test, {_plain(name.replace('_', ' '))}": values for name, values in facts.test["baselines"].items()}
    wanted = facts.checkpoint.experiment.eval.metrics
    names = [name for name in wanted if any(name in row for row in rows.values())]
    lines = [f"| {label} | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for title, row in rows.items():
        lines.append(f"| {title} | {' | '.join(f'{100 * row[name]:.2f}' if name in row else '' for name in names)} |")
    parts = ["\n".join(lines)] if names else []
    if facts.test is None:
        return [*parts, f"No test metrics: {_plain(facts.why_no_test)}."]
    looks, queries = facts.test.get("looks"), facts.test.get("queries")
    text = f"Test: {_plain(str(queries))} queries." if queries is not None else ""
    if isinstance(looks, int):
        text += f" The test split was opened {looks} time{'' if looks == 1 else 's'} for this run."
    return [*parts, text.strip()] if text else parts


def _probe(probe: ProbeFile) -> list[str]:
    rows = [
        f"| {TITLES[name]} | {VERDICTS[found.verdict]} | {_plain(share(found, probe.metric), _LINE)} |"
        for name, found in probe.known.items()
    ]
    return [
        f"Probed on {probe.asked} val queries, with its inputs changed. What it keeps:",
        "\n".join(["| probe | verdict | the model |", "|---|---|---|", *rows]),
        *(f"> **{_plain(warning, _LINE)}.**" for warning in probe.warnings()),
    ]


def _limits(facts: Facts) -> str:
    data, model = facts.checkpoint.experiment.data, facts.checkpoint.experiment.model
    auroc, rejection = (facts.test or {}).get("auroc"), ""
    if auroc is not None:
        rejection = f"; on test, scores tell such sentences from a video's own with an AUROC of {100 * auroc:.1f} %"
    clips = f"- A video is divided into {model.grid} clips; moments begin and end between them."
    lines = [
        f"- It knows features of one network only (size {data.feature_size}); others give nonsense, even of that size.",
        *([f"{clips} For videos much longer than those of training, use `window=`."] if model.grid else []),
        f"- It always answers, even where the sentence happens nowhere in the video{rejection}.",
        "- Datasets of this field are biased: where moments tend to lie is learned along with what they show.",
        "- Scores rank the moments of one query; they are no probabilities.",
    ]
    return "\n".join(lines)


def _graphs(checkpoint: Checkpoint) -> str:
    data, described = checkpoint.experiment.data, checkpoint.model.graph()
    words = "token features" if data.text == "tokens" else "vectors"
    return (
        f"One video and one query at a time. Inputs: `features` float32 [1, {data.frames}, {data.feature_size}] "
        f"(L2-normalised and averaged to {data.frames} rows, as `cdn_tune.data.clips.to_fixed_length` does), `words` "
        f"float32 [1, {graph.WORDS}, {data.word_size}] ({words}, then zeros), `word_mask` bool [1, {graph.WORDS}]. "
        f"Output: `scores` {described.output if described else ''}. Checked against the model to {graph.TOLERANCE:g}."
    )
