"""Verbs that look without changing anything: info, verify, doctor."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfanet.cli.options import OptionGroup, image_size
from tfanet.cli.output import Verbs, add_verb, table
from tfanet.errors import InputError

if TYPE_CHECKING:
    from tfanet.model.published import Published

__all__ = ["add_verbs"]

# What reading and printing a value of any kind may raise.
_ODD = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


def _add_bundle_options(parser: Any) -> None:
    parser.add_argument(
        "--digest",
        metavar="SHA256",
        help="refuse every bundle but the one with this digest (default: any)",
    )


def _add_preset_options(parser: Any) -> None:
    parser.add_argument(
        "--image-size",
        type=image_size,
        metavar="PIXELS",
        help="count for 480 or HEIGHTxWIDTH (default: the preset's size)",
    )
    parser.add_argument(
        "--table4", action="store_true", help="the ablation rows beside the paper's Table 4"
    )


# Options of `info`.
BUNDLE = OptionGroup(_add_bundle_options)
PRESET = OptionGroup(_add_preset_options)


def add_verbs(verbs: Verbs) -> None:
    info = add_verb(
        verbs,
        "info",
        run_info,
        examples=(
            "tfanet info --preset tfanet-base",
            "tfanet info --preset tfanet-base --table4",
            "tfanet info --bundle bundle",
        ),
    )
    what = info.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--preset", metavar="NAME", help="tfanet-tiny, tfanet-base, or one of another family"
    )
    what.add_argument("--bundle", metavar="DIR", help="a bundle directory")
    BUNDLE.add(info)
    PRESET.add(info)
    verify = add_verb(
        verbs,
        "verify",
        run_verify,
        extra=None,
        examples=("tfanet verify --bundle bundle", "tfanet verify --bundle bundle --json"),
    )
    verify.add_argument("--bundle", required=True, metavar="DIR", help="the bundle directory")
    verify.add_argument(
        "--digest",
        metavar="SHA256",
        help="what `tfanet info` printed where the bundle was made (default: files are compared "
        "with the manifest alone)",
    )
    add_verb(
        verbs,
        "doctor",
        run_doctor,
        extra=None,
        examples=("tfanet doctor", "tfanet doctor --json"),
    )


def run_info(args: argparse.Namespace) -> tuple[Any, str]:
    """Parameters, FLOPs and scan calls of a preset, or the facts of a bundle."""
    if args.bundle:
        PRESET.refuse(
            args, "is about a preset: leave it out, or give --preset in place of --bundle"
        )
        return _bundle_facts(args)
    BUNDLE.refuse(args, "is about a bundle: leave it out, or give --bundle in place of --preset")
    if args.table4 and args.image_size is not None:
        raise InputError(
            "--image-size cannot be chosen for --table4, whose size is the paper's: leave one out"
        )

    from tfanet.model.cost import describe
    from tfanet.model.family import find_preset
    from tfanet.model.tfanet.config import TFANetConfig
    from tfanet.model.tfanet.table4 import table4

    family, config = find_preset(args.preset)
    if args.table4:
        if not isinstance(config, TFANetConfig):
            raise InputError(f"--table4 is of TFANet's paper, {args.preset} is {family.title}")
        rows = table4(config)
        header = ("row", "M params", "paper", "difference", "GFLOPs", "paper", "difference")
        cells = [
            (
                row["name"],
                *_beside(row["params"] / 1e6, row["paper_params"] / 1e6),
                *_beside(row["flops"] / 1e9, row["paper_flops"] / 1e9),
            )
            for row in rows
        ]
        return rows, table(header, cells)
    facts = describe(config, image_size=args.image_size)
    published = family.published
    if published is None:
        return facts, _preset_text(facts)
    base = family.presets[f"{family.name}-base"]
    # The figures are of the full-size model at its own size.
    same = config == base and tuple(facts["image_size"]) == base.image_size
    facts["published"] = {**asdict(published), "model": base.name}
    scores = [
        (name, *("-" if value is None else f"{value:.2f}" for value in values))
        for name, values in published.results.items()
    ]
    results = table(("split", *published.metrics), scores)
    parts = [_preset_text(facts, published if same else None)]
    parts.append(f"published of {base.name} ({published.source}):\n{results}")
    return facts, "\n\n".join(parts)


def _beside(ours: float, theirs: float) -> tuple[str, str, str]:
    """Two numbers and their difference, as cells."""
    return f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs - 1:+.2%}"


def _bundle_facts(args: argparse.Namespace) -> tuple[Any, str]:
    from tfanet.runtime.bundle.leftovers import leftovers
    from tfanet.runtime.bundle.read import Bundle

    left = leftovers(args.bundle)
    if left["killed"] and not Path(args.bundle).exists():
        names = ", ".join(path.name for path in left["killed"])
        raise InputError(
            f"{args.bundle} is not there, its export was killed and left {names}: export it again, "
            "which puts back what was whole"
        )
    bundle = Bundle.open(args.bundle, digest=args.digest)
    manifest = bundle.manifest.to_dict()
    notes = [f"left by a killed process: {path}" for path in left["killed"]]
    notes += [f"not of the bundle: {path}" for path in left["foreign"]]
    found = {kind: [path.name for path in paths] for kind, paths in left.items()}
    facts = {**manifest, "digest": bundle.digest, "leftovers": found}
    head = f"{bundle.path}\ndigest {bundle.digest}\n\n{_manifest_text(manifest)}"
    return facts, "\n".join([head, *([""] if notes else []), *notes])


def run_verify(args: argparse.Namespace) -> tuple[Any, str]:
    """Compare every file of a bundle with its SHA-256, and the bundle with a digest.

    Exit code 2 where something differs; 1 where there is no bundle to compare. Files that the
    manifest does not list are named: nothing reads them, and no digest covers them.
    """
    from tfanet.runtime.bundle.leftovers import leftovers
    from tfanet.runtime.bundle.read import verify

    bundle = verify(args.bundle, digest=args.digest)
    foreign = [path.name for path in leftovers(args.bundle)["foreign"]]
    rows = [(name, facts["sha256"], facts["size"]) for name, facts in bundle.manifest.files.items()]
    facts = {
        "bundle": str(bundle.path),
        "digest": bundle.digest,
        "compared": args.digest is not None,
        "files": bundle.manifest.files,
        "foreign": foreign,
    }
    against = "is the one given" if args.digest else "was not compared: give --digest"
    lines = [table(("file", "SHA-256", "bytes"), rows), "", f"digest {bundle.digest} {against}"]
    return facts, "\n".join([*lines, *(f"not of the bundle: {name}" for name in foreign)])


def run_doctor(args: argparse.Namespace) -> tuple[Any, str]:
    """What is installed, which backends can run here and why the others cannot."""
    from tfanet.doctor import diagnose

    report = diagnose()
    packages = table(
        ("package", "version"),
        [(name, version or "not installed") for name, version in report["packages"].items()],
    )
    backends = table(
        ("backend", "runs here"),
        [(name, "yes") for name, facts in report["backends"].items() if facts["available"]],
    )
    missing = "\n".join(
        f"{name}: {facts['reason']}"
        for name, facts in report["backends"].items()
        if not facts["available"]
    )
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    int8 = f"INT8: {report['int8']}"
    return report, f"{machine}\n{int8}\n\n{packages}\n\n{backends}\n\n{missing}".rstrip()


def _preset_text(facts: dict[str, Any], published: Published | None = None) -> str:
    size = "x".join(str(side) for side in facts["image_size"])
    calls = sum(call["calls"] for call in facts["scans"])
    head = (
        f"{facts['name']} at {size}: {facts['params'] / 1e6:.2f} M parameters "
        f"({facts['alive'] / 1e6:.2f} M alive in the graphs), "
        f"{facts['flops'] / 1e9:.2f} GFLOPs, {calls} selective scans"
    )
    parts = [head]
    if published is not None and published.counted:
        figures = (
            ("M parameters", facts["params"], published.params, 1e6),
            ("M alive", facts["alive"], published.alive, 1e6),
            ("GFLOPs", facts["flops"], published.flops, 1e9),
        )
        rows = [
            (name, *_beside(here / unit, theirs / unit))
            for name, here, theirs, unit in figures
            if theirs
        ]
        parts.append(table(("", "here", published.counted, "difference"), rows))
    if facts["scans"]:
        scans = [
            (c["where"], c["calls"], c["groups"], c["channels"], c["state"], c["length"])
            for c in facts["scans"]
        ]
        parts.append(table(("scan", "calls", "K", "D", "N", "L"), scans))
    return "\n\n".join(parts)


def _manifest_text(manifest: dict[str, Any]) -> str:
    """What a manifest says, as far as it says it: only what runtimes compute with was checked."""

    def fact(name: str, write: Callable[[], Any]) -> tuple[str, Any]:
        try:
            return name, write()
        except _ODD:
            return name, "not given"

    size = "x".join(str(side) for side in manifest["preprocessing"]["size"])
    parity = manifest["parity"]
    rows = [
        fact("model", lambda: manifest["model"]["preset"]),
        ("image size", size),
        ("words", manifest["text"]["length"]),
        ("precision", manifest["precision"]),
        ("dynamic batch", "yes" if manifest["dynamic_batch"] else "no"),
        fact("scan nodes", lambda: manifest["scan"]["calls"]),
        fact("scan function", lambda: manifest["scan"]["function"]),
        fact("largest relative error", lambda: f"{parity['max_rel_error']:.1e}"),
        fact("pixels changed", lambda: f"{parity['pixels_changed']} of {parity['pixels']}"),
        *((name, f"{facts['size'] / 1e6:.1f} MB") for name, facts in manifest["files"].items()),
    ]
    if parity.get("certificate"):
        try:
            rows += _certificate_rows(parity["certificate"])
        except _ODD:
            rows.append(("certificate", "not as `tfanet export` writes it"))
    return table(("fact", "value"), rows)


def _certificate_rows(certificate: dict[str, Any]) -> list[tuple[str, Any]]:
    kind = certificate["precision"].upper()
    rows = [(f"arithmetic in {kind}", f"{certificate['share']:.1%}")]
    accuracy = certificate["accuracy"]
    for metric in accuracy["max_drop"] if accuracy else ():
        rows.append((f"{metric} in FP32", f"{accuracy['fp32'][metric]:.2f}"))
        rows.append((f"{metric} in {kind}", f"{accuracy['quantised'][metric]:.2f}"))
    return rows
