"""`python -m tfanet` is the `tfanet` command. What it may import is decided in `tfanet`."""

from tfanet.cli import main

raise SystemExit(main())
