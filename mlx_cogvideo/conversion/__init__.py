"""From an official checkpoint to a model folder of our own, quantized if that is asked for."""

from .info import describe_folder
from .plan import ComponentPlan, ConversionPlan, TensorPlan, plan_conversion
from .write import check_destination, convert, lock_destination

__all__ = [
    "ComponentPlan",
    "ConversionPlan",
    "TensorPlan",
    "check_destination",
    "convert",
    "describe_folder",
    "lock_destination",
    "plan_conversion",
]
