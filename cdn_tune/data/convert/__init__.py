"""Conversion: raw features, as datasets distribute them, to the HDF5 file that the loaders read."""

from cdn_tune.data.convert.convert import Converted, convert
from cdn_tune.data.convert.raw import FORMS

__all__ = ["FORMS", "Converted", "convert"]
