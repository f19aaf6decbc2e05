"""What one call of an engine runs in: an execution context, a stream, buffers and a CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfanet.errors import InputError
from tfanet.runtime.backends.device import Pinned, check, cudart, device_array

__all__ = ["Slot"]


class Slot:
    """A context with its stream and buffers; used by one call at a time."""

    def __init__(self, context: Any, tensors: Sequence[Any]) -> None:
        runtime = cudart()
        self._context = context
        self._stream = check(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self._buffers: dict[str, Pinned] = {}
        self._batch, self._graph = 0, None
        self._inputs = [tensor for tensor in tensors if tensor.is_input]
        self._owners: list[Any] = []
        for tensor in tensors:
            shape = (tensor.batches[1], *tensor.shape[1:])
            self._buffers[tensor.name] = Pinned(shape, tensor.dtype)
            context.set_tensor_address(tensor.name, self._buffers[tensor.name].device)

    def upload(self, tensor: Any, value: Any) -> int:
        """Copies an input to the device, in the order of the stream; returns its batch."""
        runtime, buffer = cudart(), self._buffers[tensor.name]
        view = device_array(value, int(self._stream))
        given = np.asarray(value) if view is None else view
        batch = given.shape[0] if given.shape else 0
        shape = (batch, *tensor.shape[1:])
        if given.dtype != tensor.dtype or tuple(given.shape) != shape:
            raise InputError(
                f"input '{tensor.name}' is {given.dtype} {tuple(given.shape)}, the engine takes "
                f"{tensor.dtype} {tuple(tensor.shape)}"
            )
        low, high = tensor.batches
        if not low <= batch <= high:
            raise InputError(
                f"the batch of '{tensor.name}' is {batch}, the engine's profile takes {low} to "
                f"{high}: build one with another --profile, or run fewer at a time"
            )
        count = int(np.prod(shape)) * tensor.dtype.itemsize
        if view is None:
            buffer.array[:batch] = value
            kind, source = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, buffer.array.ctypes.data
        else:
            kind, source = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice, view.pointer
            self._owners.append(view.owner)
        check(runtime.cudaMemcpyAsync(buffer.device, source, count, kind, self._stream))
        return batch

    def execute(self, batch: int) -> bool:
        """Launches the engine; the launches of a batch size seen before come from a CUDA graph.

        A graph belongs to the shapes that the context had, so another batch drops it.
        """
        runtime = cudart()
        if batch != self._batch:
            self._drop_graph()
            for tensor in self._inputs:
                self._context.set_input_shape(tensor.name, (batch, *tensor.shape[1:]))
            self._batch = batch
            return self._context.execute_async_v3(int(self._stream))
        if self._graph is None:
            able = getattr(self._context, "is_stream_capturable", None)
            if able is not None and not able(int(self._stream)):
                return self._context.execute_async_v3(int(self._stream))
            mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            check(runtime.cudaStreamBeginCapture(self._stream, mode))
            launched = self._context.execute_async_v3(int(self._stream))
            captured = check(runtime.cudaStreamEndCapture(self._stream))
            if not launched:
                return False
            self._graph = check(runtime.cudaGraphInstantiate(captured, 0))
            check(runtime.cudaGraphDestroy(captured))
        check(runtime.cudaGraphLaunch(self._graph, self._stream))
        return True

    def download(self, outputs: Sequence[Any], batch: int) -> list[np.ndarray]:
        """Waits for the stream; the outputs are the caller's own."""
        runtime = cudart()
        for tensor in outputs:
            buffer = self._buffers[tensor.name]
            count = buffer.bytes // tensor.batches[1] * batch
            kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
            target = buffer.array.ctypes.data
            check(runtime.cudaMemcpyAsync(target, buffer.device, count, kind, self._stream))
        check(runtime.cudaStreamSynchronize(self._stream))
        self._owners.clear()
        return [self._buffers[tensor.name].array[:batch].copy() for tensor in outputs]

    def close(self) -> None:
        """Frees what it holds."""
        self._drop_graph()
        for buffer in self._buffers.values():
            buffer.free()
        check(cudart().cudaStreamDestroy(self._stream))

    def _drop_graph(self) -> None:
        if self._graph is not None:
            check(cudart().cudaGraphExecDestroy(self._graph))
            self._graph = None
