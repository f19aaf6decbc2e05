from .losses import segmentation_loss as segmentation_loss
from .train import TrainOptions as TrainOptions
from .train import train as train
