"""The table of operands: Python's and C++'s are equal, and everything that repeats it agrees."""

from __future__ import annotations

import ctypes
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import defs

import tfanet.plugins.graph.schemas  # noqa: F401  (registers the operators with onnx)
from tfanet import plugins
from tfanet.plugins.compat import entry_points, standins
from tfanet.plugins.graph.bodies import Pattern
from tfanet.plugins.graph.translation import custom_translation_table
from tfanet.plugins.kernels import cpu, cuda
from tfanet.plugins.operands import (
    CUDA_TYPES,
    DIRECTIONS,
    DOMAIN,
    MAX_CHANNELS_CUDA,
    MAX_STATES_CPU,
    MAX_STATES_CUDA,
    OPERATORS,
    SELECTIVE_SCAN,
    SS2D,
    SS2D_SCAN,
    TYPES,
    VERSION,
    Operator,
    derived_sizes,
)
from tfanet.plugins.pytorch import reference

CSRC = Path(__file__).resolve().parents[2] / "plugins" / "csrc"


def run_cpp(folder: Path, source: str) -> Any:
    """What a program prints, as JSON."""
    (folder / "told.cpp").write_text(source)
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
    subprocess.run(
        [*command, str(folder / "told.cpp"), "-o", str(folder / "told")], check=True, timeout=300
    )
    done = subprocess.run([folder / "told"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


# --- Python and C++ -------------------------------------------------------------------------------

TABLE = r"""
#include <cstdio>

#include "operands.h"

using namespace tfanet;
using namespace tfanet::operands;

void print(const Types* types, int count) {
  const char* names[] = {"float32", "float64", "float16", "bfloat16"};
  std::printf("[");
  for (int i = 0; i < count; ++i) {
    std::printf("%s[\"%s\", \"%s\"]", i ? ", " : "", names[static_cast<int>(types[i].sequence)],
                names[static_cast<int>(types[i].weight)]);
  }
  std::printf("]");
}

void print(const Operator& op) {
  std::printf("{\"op_type\": \"%s\", \"required\": %d, \"operands\": [", op.op_type, op.required);
  for (int i = 0; i < op.inputs; ++i) {
    const Operand& x = op.input[i];
    std::printf("%s{\"name\": \"%s\", \"weight\": %s, \"optional\": %s, \"axes\": [", i ? ", " : "",
                x.name, x.weight ? "true" : "false", x.optional ? "true" : "false");
    for (int k = 0; k < x.rank; ++k) {
      std::printf("%s\"%s\"", k ? ", " : "", op.axis[x.axes[k]]);
    }
    std::printf("]}");
  }
  std::printf("], \"axes\": [");
  for (int i = 0; i < op.axes; ++i) std::printf("%s\"%s\"", i ? ", " : "", op.axis[i]);
  std::printf("], \"cpu_types\": ");
  print(op.cpu_types, op.cpu);
  std::printf(", \"cuda_types\": ");
  print(op.cuda_types, op.cuda);
  std::printf("}");
}

void print_derived(const Operator& op) {
  long long sizes[kMaxAxes] = {};
  sizes[ss2d::kE] = 5, sizes[ss2d::kR] = 3, sizes[ss2d::kN] = 2;
  std::printf("{");
  const char* before = "";
  for (int i = 0; i < op.axes; ++i) {
    const long long size = ss2d::derived_size(op, i, sizes);
    if (size < 0) continue;
    std::printf("%s\"%s\": %lld", before, op.axis[i], size);
    before = ", ";
  }
  std::printf("}");
}

int main() {
  std::printf("{\"limits\": [%d, %d, %d, %d, \"%s\", %d], \"operators\": [", kDirections,
              kMaxStatesCpu, kMaxStatesCuda, kMaxChannelsCuda, kDomain, kVersion);
  print(selective_scan::kOperator);
  std::printf(", ");
  print(ss2d::kWhole);
  std::printf(", ");
  print(ss2d::kScanOnly);
  std::printf("], \"derived\": [");
  print_derived(ss2d::kWhole);
  std::printf(", ");
  print_derived(ss2d::kScanOnly);
  std::printf("]}\n");
}
"""


def facts(operator: Operator) -> dict[str, Any]:
    """What C++ knows of an operator; axes come in any order, but each once."""
    return {
        "op_type": operator.op_type,
        "required": operator.required,
        "operands": [
            {"name": x.name, "weight": x.weight, "optional": x.optional, "axes": list(x.axes)}
            for x in operator.operands
        ],
        "axes": sorted({axis for x in operator.operands for axis in x.axes}),
        "cpu_types": [list(pair) for pair in operator.cpu_types],
        "cuda_types": [list(pair) for pair in operator.cuda_types],
    }


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_cpp(tmp_path_factory.mktemp("table"), TABLE)


@pytest.mark.parametrize("index", range(3))
def test_cpp_and_python_have_the_same_operators(told: Any, index: int) -> None:
    found = told["operators"][index]
    assert len(told["operators"]) == len(OPERATORS)
    assert {**found, "axes": sorted(found["axes"])} == facts(OPERATORS[index])


def test_cpp_and_python_have_the_same_limits(told: Any) -> None:
    limits = [DIRECTIONS, MAX_STATES_CPU, MAX_STATES_CUDA, MAX_CHANNELS_CUDA, DOMAIN, VERSION]
    assert told["limits"] == limits


def test_cpp_and_python_derive_the_same_sizes(told: Any) -> None:
    sizes = derived_sizes({"E": 5, "R": 3, "N": 2})
    for operator, found in zip((SS2D, SS2D_SCAN), told["derived"], strict=True):
        axes = {axis for x in operator.operands for axis in x.axes}
        assert found == {axis: size for axis, size in sizes.items() if axis in axes}
    assert sizes == {"K": 4, "4E": 20, "R + 2N": 7, "4(R + 2N)": 28}
    assert derived_sizes({"E": 5}) == {"K": 4, "4E": 20}


# --- The structures of the CPU kernels ------------------------------------------------------------


def test_cpp_and_ctypes_lay_structures_out_alike(tmp_path: Path) -> None:
    structures = (
        cpu.SequenceStrides,
        cpu.ProjectionStrides,
        cpu.ScanArgs,
        cpu.ScanGradients,
        cpu.SS2DArgs,
    )
    lines = []
    for kind in structures:
        name = kind.__name__
        lines.append(f'std::printf("%s\\"{name}\\": [%zu", before, sizeof(tfanet::{name}));')
        for field in kind._fields_:
            place = f"offsetof(tfanet::{name}, {field[0]})"
            size = f"sizeof(tfanet::{name}::{field[0]})"
            lines.append(f'std::printf(", [%zu, %zu]", {place}, {size});')
        lines.append('std::printf("]"); before = ", ";')
    source = (
        "#include <cstddef>\n#include <cstdio>\n"
        '#include "cpu/selective_scan.h"\n#include "cpu/ss2d.h"\n'
        'int main() { const char* before = "{";\n' + "\n".join(lines) + '\nstd::puts("}"); }\n'
    )
    expected = {
        kind.__name__: [
            ctypes.sizeof(kind),
            *([getattr(kind, n).offset, getattr(kind, n).size] for n, *_ in kind._fields_),
        ]
        for kind in structures
    }
    assert run_cpp(tmp_path, source) == expected


def test_structures_have_every_operand() -> None:
    scan, gradients, ss2d = (
        [name for name, kind, *_ in structure._fields_ if kind is ctypes.c_void_p]
        for structure in (cpu.ScanArgs, cpu.ScanGradients, cpu.SS2DArgs)
    )
    assert scan == [*SELECTIVE_SCAN.torch_inputs, "y"]
    assert sorted(name.removesuffix("_parts") for name in gradients) == sorted(
        ["dy", *(f"d{name}" for name in SELECTIVE_SCAN.inputs)]
    )
    assert sorted(ss2d) == sorted({*SS2D.inputs, *SS2D_SCAN.inputs, "y", "workspace"})


def test_element_types_have_the_codes_of_cpp(tmp_path: Path) -> None:
    source = """
    #include <cstdio>
    #include "cpu/selective_scan.h"
    int main() {
      using namespace tfanet;
      std::printf("[%d, %d, %d, %d]", kFloat32, kFloat64, kFloat16, kBFloat16);
    }"""
    codes = run_cpp(tmp_path, source)
    assert (
        dict(zip(("float32", "float64", "float16", "bfloat16"), codes, strict=True)) == cpu.DTYPES
    )


# --- What repeats the table so that one can read it -----------------------------------------------


def signature(function: Callable[..., Any], skipped: int = 0) -> list[tuple[str, bool]]:
    """Parameters by position behind the first `skipped`, and whether each may be left out."""
    parameters = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    return [(p.name, p.default is not inspect.Parameter.empty) for p in parameters[skipped:]]


def expected_signature(operator: Operator) -> list[tuple[str, bool]]:
    operands = [(x.name, x.optional) for x in operator.torch_operands]
    return operands + [(flag, True) for flag in operator.flags]


SCANS = {
    "selective_scan": (plugins.selective_scan, 0),
    "selective_scan_ref": (plugins.selective_scan_ref, 0),
    "selective_scan_parallel": (plugins.selective_scan_parallel, 0),
    "selective_scan_gradients": (reference.selective_scan_gradients, 1),
    "translation": (custom_translation_table()[torch.ops.tfanet.selective_scan.default], 0),
    "entry point": (entry_points.scan, 0),
    "stand-in": (standins.selective_scan_fn, 0),
}
MAPS = {
    "ss2d": (plugins.ss2d, 0),
    "ss2d_ref": (plugins.ss2d_ref, 0),
    "ss2d_composed": (reference.ss2d_composed, 0),
    "ss2d_gradients": (reference.ss2d_gradients, 1),
    "translation": (custom_translation_table()[torch.ops.tfanet.ss2d.default], 0),
}


@pytest.mark.parametrize("name", SCANS)
def test_signatures_of_scans(name: str) -> None:
    expected = expected_signature(SELECTIVE_SCAN)
    assert signature(*SCANS[name])[: len(expected)] == expected


@pytest.mark.parametrize("name", MAPS)
def test_signatures_of_2d_scans(name: str) -> None:
    assert signature(*MAPS[name]) == expected_signature(SS2D)


def test_schemas_of_pytorch() -> None:
    """Exported programs hold these: they change with the operator's version alone."""
    operators = torch.ops.tfanet
    arguments = (
        "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
        "Tensor? delta_bias, bool delta_softplus"
    )
    assert str(operators.selective_scan.default._schema) == (
        f"tfanet::selective_scan({arguments}) -> Tensor"
    )
    assert str(operators.selective_scan_backward.default._schema) == (
        f"tfanet::selective_scan_backward(Tensor dy, {arguments}) -> "
        f"({', '.join(['Tensor'] * len(SELECTIVE_SCAN.operands))})"
    )
    assert str(operators.ss2d.default._schema) == (
        "tfanet::ss2d(Tensor u, Tensor x_proj_weight, Tensor dt_weight, Tensor dt_bias, Tensor A, "
        "Tensor D) -> Tensor"
    )


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.op_type)
def test_schemas_of_onnx(operator: Operator) -> None:
    found = defs.get_schema(operator.op_type, VERSION, DOMAIN)
    option = defs.OpSchema.FormalParameterOption
    assert [(x.name, x.type_str, x.option, x.description) for x in found.inputs] == [
        (
            x.name,
            "W" if x.weight else "T",
            option.Optional if x.optional else option.Single,
            f"shape ({', '.join(x.axes)})",
        )
        for x in operator.operands
    ]
    assert (found.min_input, found.max_input) == (operator.required, len(operator.operands))
    assert [*found.attributes] == [*operator.flags]
    onnx_names = {"float32": "float", "float64": "double"}
    types = {c.type_param_str: {*c.allowed_type_strs} for c in found.type_constraints}
    assert types == {
        letter: {f"tensor({onnx_names.get(name, name)})" for name in names}
        for letter, names in (("T", operator.onnx_types), ("W", operator.onnx_weight_types))
    }


def test_orders_differ_by_host_and_name_the_same_operands() -> None:
    # Files and exported programs hold these orders.
    assert SELECTIVE_SCAN.inputs == ("u", "delta", "A", "B", "C", "D", "delta_bias", "z")
    assert SELECTIVE_SCAN.torch_inputs == ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    assert SS2D.inputs == ("u", "x_proj_weight", "dt_weight", "dt_bias", "A", "D")
    assert SS2D_SCAN.inputs == ("u", "rows", "dt_weight", "dt_bias", "A", "D")
    for operator in (SELECTIVE_SCAN, SS2D):
        assert sorted(operator.torch_inputs) == sorted(operator.inputs)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.op_type)
def test_the_table_makes_sense(operator: Operator) -> None:
    optional = [x.optional for x in operator.operands]
    assert optional == sorted(optional), "optional operands come last"
    assert not operator.operands[0].weight and operator.inputs[0] == "u"
    names = {*operator.onnx_types, *operator.onnx_weight_types}
    assert names <= {*TYPES}
    for pairs, known in ((operator.cpu_types, TYPES), (operator.cuda_types, CUDA_TYPES)):
        assert {t for pair in pairs for t in pair} <= {*known} and len({*pairs}) == len(pairs)
        assert all(t in operator.onnx_types for t, _ in pairs)
        assert all(w in operator.onnx_weight_types for _, w in pairs)


def test_function_bodies_know_every_optional_operand() -> None:
    for flags in range(1 << len(SELECTIVE_SCAN.optional)):
        given = {n: bool(flags >> i & 1) for i, n in enumerate(SELECTIVE_SCAN.optional)}
        last = max((i for i, n in enumerate(given) if given[n]), default=-1)
        names = SELECTIVE_SCAN.inputs[: SELECTIVE_SCAN.required + last + 1]
        assert Pattern(**given).inputs() == [*names]  # type: ignore[arg-type]


def test_cuda_kernels_take_the_operands_that_are_there() -> None:
    entry = (CSRC / "cuda" / "selective_scan_entry.cu").read_text()
    for optional in ((), ("D",), ("z", "D"), SELECTIVE_SCAN.optional):
        kernel = cuda.ScanKernel("float16", "float32", 1, optional, True)
        expected = [
            n for n in SELECTIVE_SCAN.inputs if n in (*SELECTIVE_SCAN.inputs[:5], *optional)
        ]
        assert kernel.operands() == tuple(expected)
        macros = [m.removeprefix("--define-macro=").split("=")[0] for m in kernel.macros()]
        assert all(f"defined({macro})" in entry for macro in macros), macros


def test_the_table_imports_nothing_heavy() -> None:
    code = (
        "import sys; import tfanet.plugins.operands; "
        "assert not {'torch', 'onnx', 'numpy', 'ctypes'} & {*sys.modules}, sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
