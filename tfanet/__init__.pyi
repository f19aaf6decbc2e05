from . import calibration as calibration
from . import data as data
from . import errors as errors
from . import evaluation as evaluation
from . import export as export
from . import model as model
from . import plugins as plugins
from . import runtime as runtime
from . import training as training
from .runtime import Predictor as Predictor

__version__: str
