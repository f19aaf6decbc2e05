from .accept.certificate import GuardOptions as GuardOptions
from .accept.certificate import recheck as recheck
from .measure.calibrator import calibrate as calibrate
from .quantizer import quantize_bundle as quantize_bundle
from .ranges import Calibration as Calibration
from .ranges import diff as diff
