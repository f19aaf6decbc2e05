from .options import PretrainOptions as PretrainOptions
from .pretrain import pretrain as pretrain
from .train import TrainOptions as TrainOptions
from .train import train as train
