"""Variants of a trained model that take less time: fewer decoder layers, fewer queries, smaller images."""

from __future__ import annotations

import copy
import dataclasses

from detrkit.config import update_config
from detrkit.errors import UsageError
from detrkit.families.family import BuiltModel


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is kept of a model; nothing is trained again.

    Args:
        decoder_layers: The first so many decoder layers; the outputs of each were trained to be detections.
        queries: Numbers of the queries that are kept.
        eval_size: Short side of images in pixels; the bound of the long side goes with it.
    """

    decoder_layers: int
    queries: tuple[int, ...]
    eval_size: int

    @classmethod
    def whole(cls, built: BuiltModel) -> Variant:
        """Return the variant that is the model as it is."""
        model = built.config.model
        return cls(model.decoder_layers, tuple(range(model.num_queries)), built.config.transforms.eval_size)

    @property
    def name(self) -> str:
        """Name, such as ``d2-q50-s256``: decoder layers, queries, size."""
        return f"d{self.decoder_layers}-q{len(self.queries)}-s{self.eval_size}"

    def max_size(self, built: BuiltModel) -> int:
        """Return the greatest long side of images in pixels."""
        transforms = built.config.transforms
        return round(transforms.max_size * self.eval_size / transforms.eval_size)

    def apply(self, built: BuiltModel) -> BuiltModel:
        """Return the variant of a model, which is left as it is.

        Raises:
            UsageError: It has more of something than the model.
        """
        whole = Variant.whole(built)
        if not (
            0 < self.decoder_layers <= whole.decoder_layers
            and self.queries
            and set(self.queries) <= set(whole.queries)
            and self.eval_size > 0
        ):
            raise UsageError(f"{self.name} is no variant of a model that is {whole.name}; expected less of it")
        changes = {
            "model.decoder_layers": self.decoder_layers,
            "model.num_queries": len(self.queries),
            "transforms.eval_size": self.eval_size,
            "transforms.max_size": self.max_size(built),
        }
        model = copy.deepcopy(built.model)
        if self.decoder_layers < whole.decoder_layers or self.queries != whole.queries:
            built.family.keep_parts(model, self.decoder_layers, self.queries)
        return dataclasses.replace(built, model=model, config=update_config(built.config, changes))
