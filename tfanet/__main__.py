"""`python -m tfanet` is the `tfanet` command."""

import os
import sys

# Python has put the current folder first. What lies there, such as a json.py among the data, is not
# to be run; a user's own model is looked for there by `tfanet onnx`.
if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

from tfanet.cli import main

raise SystemExit(main())
