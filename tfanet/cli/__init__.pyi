from .command import build_parser as build_parser
from .command import main as main
