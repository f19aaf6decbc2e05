"""`export_bundle`: a model or checkpoint to a bundle on disk, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto
from torch import nn

from tfanet import __version__
from tfanet.errors import InputError
from tfanet.export.graphs import export_image, export_text
from tfanet.export.parity.check import check_graphs, file_backends
from tfanet.export.trace import check_options, graph_interface
from tfanet.model.checkpoint import family_of, load_model
from tfanet.model.family import Family, is_preset
from tfanet.plugins.graph.attach import count_scan_nodes
from tfanet.plugins.graph.ss2d import is_ss2d
from tfanet.plugins.operands import DOMAIN, SELECTIVE_SCAN, VERSION
from tfanet.progress import Progress, Stages
from tfanet.runtime.bert_vocabulary import wordpiece_from_vocab
from tfanet.runtime.bundle.graphs import IMAGE, TEXT
from tfanet.runtime.bundle.read import (
    FILES,
    SCHEMA_VERSION,
    Bundle,
    Manifest,
    file_facts,
)
from tfanet.runtime.bundle.write import check_target, new_bundle, write_manifest

__all__ = ["export_bundle"]

VERSIONS = ("torch", "onnx", "onnxscript", "onnxruntime", "transformers")


def export_bundle(
    model: nn.Module | str | Path,
    output: str | Path,
    *,
    function: str = "sequential",
    fuse: bool = True,
    image_size: tuple[int, int] | None = None,
    dynamic_batch: bool = True,
    opset: int = 20,
    instances: bool = False,
    vocab: str | Path | None = None,
    overwrite: bool = False,
    finish: Callable[[Path], object] | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export to `output`, compare with PyTorch, and return the opened bundle.

    Args:
        model: a network of one of the families, a checkpoint file, or a preset's name.
        output: the bundle's directory. overwrite: replace a bundle that is there.
        function: the scan in standard operators: "sequential", "parallel" or "none".
        fuse: 2-D scans are single nodes, tfanet::SS2D, else their parts (the same numbers).
        image_size: (H, W) that the family can take; default: the model's.
        dynamic_batch: leave the batch open, else fix it at 1.
        opset: 18 to 23.
        instances: of a family that tells objects apart, give each one's mask too.
        vocab: of a family that reads BERT's word pieces, the vocab.txt of its own training; without
            it, that of bert-base-uncased.
        finish: called with the whole bundle before it takes its place, to add engines, say.

    The directory appears complete or not at all: it is written beside its place under another
    name. The same model and options give the same bytes.

    Raises:
        InputError: for options that do not fit, and as `check_target` for the output.
        GateError: where the graphs do not compute what PyTorch does; nothing is written then.
    """
    check_target(output, overwrite=overwrite)
    check_options(function, opset)
    source = "preset" if is_preset(str(model)) else "checkpoint"
    network: Any = (model if isinstance(model, nn.Module) else load_model(model)).eval()
    family, config = family_of(network), network.config
    size = image_size or config.image_size
    family.check_image_size(config, size)
    outputs: tuple[str, ...] = ("mask", "no_target")
    if instances:
        outputs = (*outputs, "relevance", "instances", "alignment")
        if "instances" not in family.image_outputs.values():
            raise InputError(f"{family.title} does not tell objects apart: leave instances out")
    tokenizer = _tokenizer(family, config, vocab)
    graph = {
        "outputs": outputs,
        "function": function,
        "fuse": fuse,
        "dynamic_batch": dynamic_batch,
        "opset": opset,
    }
    with new_bundle(output, overwrite=overwrite) as work:
        _write(work, network, tokenizer, source, size, graph, progress)
        if finish is not None:
            finish(work)
    return Bundle.open(output)


def _tokenizer(family: Family, config: Any, vocab: str | Path | None) -> bytes:
    """The bundle's tokenizer.json."""
    if vocab is None:
        return family.tokenizer_file.read_bytes()
    if family.tokenizer != "bert-wordpiece":
        raise InputError(
            f"{family.title} reads CLIP's byte pairs, whose vocabulary is fixed: leave vocab out"
        )
    return wordpiece_from_vocab(vocab, config.text.vocabulary)


def _write(
    work: Path,
    network: Any,
    tokenizer: bytes,
    source: str,
    size: tuple[int, int],
    graph: dict[str, Any],
    progress: Progress | None,
) -> None:
    stages = Stages(progress)
    family, config = family_of(network), network.config
    (work / "tokenizer.json").write_bytes(tokenizer)
    tokens = family.tokenization(config, work / "tokenizer.json")
    dynamic_batch = graph["dynamic_batch"]
    stages.next("exporting text.onnx", 0.15)
    text = export_text(network, tokens=tokens, dynamic_batch=dynamic_batch, opset=graph["opset"])
    interface = {TEXT: _save(text, work / TEXT)}
    del text
    stages.next("exporting image.onnx", 0.6)
    image = export_image(network, size, tokens=tokens, **graph)
    calls, fused = count_scan_nodes(image), sum(map(is_ss2d, image.graph.node))
    interface[IMAGE] = _save(image, work / IMAGE)
    del image
    for value in interface[IMAGE][1]:
        value["role"] = family.image_outputs[value["name"]]

    comparing = stages.next("comparing with PyTorch", 0.9)
    figures = check_graphs(
        network,
        file_backends(work / TEXT, work / IMAGE),
        size,
        tokens=tokens,
        dynamic_batch=dynamic_batch,
        progress=comparing,
    )
    stages.next("writing")
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        tool={"name": "tfanet", "version": __version__},
        model={
            "family": family.name,
            "preset": config.name,
            "source": source,
            "config": config.to_dict(),
        },
        inputs={name: inputs for name, (inputs, _) in interface.items()},
        outputs={name: outputs for name, (_, outputs) in interface.items()},
        preprocessing=family.preprocessing(size),
        text=tokens,
        postprocessing=family.postprocessing,
        scan={
            "domain": DOMAIN,
            "op": SELECTIVE_SCAN.op_type,
            "version": VERSION,
            "function": graph["function"],
            "calls": calls,
            "fused": fused,
        },
        precision="fp32",
        dynamic_batch=dynamic_batch,
        versions={name: metadata.version(name) for name in VERSIONS},
        files={name: file_facts(work / name) for name in FILES},
        engines=[],
        parity=figures,
    )
    write_manifest(work, manifest)
    stages.end()


def _save(model: ModelProto, path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write a checked model; returns its inputs and outputs."""
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)
    graph = model.graph
    return graph_interface(graph.input), graph_interface(graph.output)
