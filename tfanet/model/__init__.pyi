from .tfanet import Fusion as Fusion
from .tfanet import TFANet as TFANet
