from .evaluate import evaluate as evaluate
from .metrics import GeneralizedMetrics as GeneralizedMetrics
from .metrics import Metrics as Metrics
from .metrics import iou as iou
