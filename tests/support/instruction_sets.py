"""The instruction sets of the scan kernel that this processor has."""

from __future__ import annotations

from tfanet.errors import MissingDependencyError
from tfanet.plugins.kernels import cpu


def _available() -> list[str]:
    try:
        return [name for name in cpu.ISAS if name != "automatic" and cpu.isa_name(name)]
    except MissingDependencyError:
        return ["automatic"]  # each test then ends for want of the library


ISAS = _available()
