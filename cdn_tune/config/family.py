"""The configuration side of a model family: the `model` and `loss` sections of an experiment."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from cdn_tune.config.keys import Frozen
from cdn_tune.model import families

if TYPE_CHECKING:
    from cdn_tune.config.experiment import DataConfig
    from cdn_tune.model.family import MomentModel


SEQUENCES = ("sequence", "sequence_mask", "times")


class Inputs(NamedTuple):
    """What a network's `forward` takes, in order: names of fields of `data.dataset.Batch`, which has one per form."""

    # Frame features averaged to a fixed length; or `SEQUENCES`, as `data.sequence` has them.
    video: tuple[str, ...] = ("visual",)
    query: tuple[str, ...] = ("words", "word_mask")  # padded word vectors
    batch: tuple[str, ...] = ()  # what tells the queries of a batch apart; given where there is one, not in prediction

    @property
    def sequences(self) -> bool:
        """Whether videos are read as sequences, of any length; else as clips, of a fixed one."""
        return self.video == SEQUENCES


class LossConfig(Frozen):
    """The `loss` section of an experiment; a family with settings of its loss derives from it."""

    @classmethod
    def variants(cls, family: str | None = None) -> Sequence[type[Frozen]]:
        """Returns the loss sections of all families, or of one."""
        return [each.loss for each in families.all_of(family)] if cls is LossConfig else (cls,)


class ModelConfig(Frozen):
    """A model family, as an experiment configures it: the `model` section.

    A family is one subclass and one line of `cdn_tune.model.families`. The subclass declares ``name: Literal["NAME"] =
    "NAME"`` and the keys of its `model` section, all with defaults, and implements `build`. Its module must not import
    torch where parsing a configuration is to stay quick: the network lies in another one, which `build` imports. What
    the network has to offer is `cdn_tune.model.family.MomentModel`.

    Class attributes:
        loss: The family's `loss` section.
        inputs: What its network reads of a batch.
        label: The family's name in tables and on cards.
        per_layer: Keys below `model` that take a list with a value per layer, each with the key that counts the layers
            and the type of a value.
        per_video: Whether the memory of training grows with the videos of a batch, however many of their queries are
            there; else with its queries.
        has_score_map: Whether `MomentModel.pictures` has score maps, which ``--score-maps`` writes.
    """

    name: str = ""

    loss: ClassVar[type[LossConfig]] = LossConfig
    inputs: ClassVar[Inputs] = Inputs()
    label: ClassVar[str]
    per_layer: ClassVar[Mapping[str, tuple[str, type]]] = {}
    per_video: ClassVar[bool] = False
    has_score_map: ClassVar[bool] = False

    @abstractmethod
    def build(self, data: "DataConfig", loss: LossConfig) -> "MomentModel":
        """Returns the untrained network, its weights drawn from torch's generator; also on the meta device.

        `data` has the sizes of frame features and word vectors and the number of frames; `loss` is of the class `loss`.
        """

    def check(self, data: "DataConfig") -> None:
        """Raises a `ValueError` in one line (keys, values, remedy) if the network cannot read the data."""

    def summary(self) -> str:
        """Returns the sizes and the variant of the model in a few words; may be empty."""
        return ""

    @property
    def needs_moment(self) -> str:
        """The setting whose loss needs a moment of every query; empty where that may be empty too, [0, 0]."""
        return f"model.name={self.name}"

    @property
    def grid(self) -> int | None:
        """Equal clips of a video between which moments begin and end; None where they may begin anywhere."""
        return None

    @classmethod
    def variants(cls, family: str | None = None) -> Sequence[type[Frozen]]:
        """Returns the model sections of all families, or of one."""
        return families.all_of(family) if cls is ModelConfig else (cls,)
