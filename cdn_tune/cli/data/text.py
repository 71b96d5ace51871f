"""`cdn-tune data text`: queries as token features of a language model."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from cdn_tune.cli.app import data_app
from cdn_tune.cli.show.output import print_line, warn
from cdn_tune.cli.show.progress import counted

Split = Literal["train", "val", "test"]


@data_app.command(epilog="Example: cdn-tune data text data/charades --model models/distilbert-base-uncased")
def text(
    root: Annotated[Path, Argument(metavar="ROOT", help="Folder with annotations.")],
    model: Annotated[
        str, Option(metavar="DIR|NAME", help="Folder of a language model with safetensors, or its name on the hub.")
    ],
    split: Annotated[Split | None, Option(help="Only its queries.", show_default="all splits")] = None,
    dataset: Annotated[str | None, Option(help="Layout.", metavar="NAME", show_default="as recognised")] = None,
    out: Annotated[
        Path | None, Option(metavar="FILE", help="HDF5 file to write.", show_default="ROOT/tokens.hdf5")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16"], Option(help="How numbers are stored; float16 halves the file.")
    ] = "float32",
) -> None:
    """Write the queries' token features for data.text=tokens: the last hidden state of a language model.

    What FILE already has of the model stays, and the same command again goes on where it stopped.
    """
    from cdn_tune.config import DataConfig
    from cdn_tune.data.annotations import SPLITS
    from cdn_tune.data.text import TextEncoder, compute_tokens, dataset_texts

    file = out or root / DataConfig.model_fields["tokens"].default
    texts = dataset_texts(root, dataset, (split,) if split else SPLITS)
    encoder = TextEncoder(model)
    with counted("encoding") as progress:
        written = compute_tokens(texts, encoder, file, dtype, progress)
    if written.cut:
        warn(
            f"{written.cut} queries have more than the {encoder.longest} tokens that {model} reads; they are cut there"
        )
    size = written.model.size
    print_line(f"{file}: {written.texts} queries, size {size}, {written.computed} of them computed now")
    place = "" if out is None else f" data.tokens={shlex.quote(str(out.absolute()))}"
    print_line(f"train with: data.text=tokens data.word_size={size}{place}")
