"""Text of this machine -> windows of tokens to calibrate on; nothing is fetched."""

from compiler.calibration_data.limits import ReadLimits
from compiler.calibration_data.samples import CalibrationSamples, DatasetSpec, calibration_samples

__all__ = ["CalibrationSamples", "DatasetSpec", "ReadLimits", "calibration_samples"]
