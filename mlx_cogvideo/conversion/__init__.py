"""From an official checkpoint to a model folder of our own, quantized if that is asked for."""

from .convert import check_destination, convert
from .info import describe_folder
from .plan import ComponentPlan, ConversionPlan, TensorPlan, plan_conversion

__all__ = [
    "ComponentPlan",
    "ConversionPlan",
    "TensorPlan",
    "check_destination",
    "convert",
    "describe_folder",
    "plan_conversion",
]
