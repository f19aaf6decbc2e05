"""Prints what setup.cfg requires for tfanet and for the extras that are named.

For environments in which nothing of tfanet is built: `make test-one` installs these and no more.
"""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.cfg"


def requirements(*extras: str) -> list[str]:
    """One requirement a line, as pip takes it; extras may name others, as in setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    known = setup["options.extras_require"]
    for extra in extras:
        if extra not in known:
            raise SystemExit(f"setup.cfg has no extra {extra!r}: choose from {', '.join(known)}")
    text = [setup["options"]["install_requires"], *(known[extra] for extra in extras)]
    return [line for part in text for line in part.splitlines() if line]


if __name__ == "__main__":
    print("\n".join(requirements(*sys.argv[1:])))
