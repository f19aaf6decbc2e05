from .network import Fusion as Fusion
from .network import TFANet as TFANet
