"""The `tfanet` command: one verb per task, each verb one call of the Python API.

Exit codes: 0 done, 1 the user's mistake, 2 a parity or accuracy gate failed, 3 the environment
lacks something. A mistake is one line on standard error; `--json` prints the result as JSON on
standard output, and nothing else there.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
