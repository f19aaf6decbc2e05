from .train import TrainOptions as TrainOptions
from .train import train as train
