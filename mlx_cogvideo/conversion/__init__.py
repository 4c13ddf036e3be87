"""Converts an official checkpoint to a model folder, quantized on request."""

from .info import describe_folder
from .plan import ComponentPlan, ConversionPlan, TensorPlan, plan_conversion
from .write import check_destination, check_free, convert, lock_destination

__all__ = [
    "ComponentPlan",
    "ConversionPlan",
    "TensorPlan",
    "check_destination",
    "check_free",
    "convert",
    "describe_folder",
    "lock_destination",
    "plan_conversion",
]
