"""The verb that publishes a bundle."""

from __future__ import annotations

import argparse
from typing import Any

from tfanet.cli.output import Verbs, add_verb

__all__ = ["add_verbs"]


def add_verbs(verbs: Verbs) -> None:
    push = add_verb(
        verbs,
        "push",
        run_push,
        extra=None,
        examples=(
            "tfanet push --bundle bundle --repo owner/name --licence apache-2.0",
            "tfanet push --bundle bundle --repo owner/name --dry-run repository",
        ),
    )
    push.add_argument("--bundle", required=True, metavar="DIR", help="the bundle directory")
    push.add_argument(
        "--repo", required=True, metavar="OWNER/NAME", help="the repository of the hub"
    )
    push.add_argument("--private", action="store_true", help="make it one that only its owner sees")
    push.add_argument("--revision", metavar="NAME", help="the branch (default: the main one)")
    push.add_argument(
        "--licence",
        metavar="NAME",
        help="of the weights, as the hub spells it, such as apache-2.0 or other (default: of a "
        "shipped model its own)",
    )
    push.add_argument(
        "--dry-run",
        metavar="DIR",
        help="write the repository into this folder; send nothing (default: it is sent)",
    )


def run_push(args: argparse.Namespace) -> tuple[Any, str]:
    """Upload a bundle to the Hugging Face hub, with a model card made from its manifest.

    The token is the one that `hf auth login` left, or that of HF_TOKEN.
    """
    from tfanet.errors import InputError
    from tfanet.runtime.hub import push, write_repository

    if args.dry_run is not None:
        for option in ("private", "revision"):
            if getattr(args, option):
                raise InputError(f"--{option} is for an upload, and --dry-run sends nothing")
        done = write_repository(args.bundle, args.repo, args.dry_run, licence=args.licence)
        text = f"{done['url']}: {len(done['files'])} files, nothing was sent"
    else:
        done = push(
            args.bundle,
            args.repo,
            licence=args.licence,
            private=args.private,
            revision=args.revision,
        )
        text = f"{done['url']}\ndigest {done['digest']}"
    return done, text
