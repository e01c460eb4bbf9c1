"""The driver API of CUDA without a GPU: it knows which context is current in which thread."""

import threading

SUCCESS, INVALID_CONTEXT, OUT_OF_MEMORY = 0, 201, 2
PRIMARY = 1000
"""The primary context of device 0; that of device 1 is the next number, and so on."""


class DriverAPI:
    """Takes the place of ``cuda.bindings.driver``.

    Arguments:
        streams: The context of each stream of its own; 0 is the default stream, in any context.
    """

    CUfunction = int

    def __init__(self, streams=()):
        self.streams = dict(streams)
        self.launched = []  # (stream, context) of each launch
        self.retained, self.refusal = [], SUCCESS
        self._here = threading.local()

    @property
    def stack(self):
        """The contexts of this thread, the current one at the end."""
        if not hasattr(self._here, "stack"):
            self._here.stack = []
        return self._here.stack

    def cuCtxPushCurrent(self, context):
        self.stack.append(context)
        return (SUCCESS,)

    def cuCtxPopCurrent(self):
        return (SUCCESS, self.stack.pop()) if self.stack else (INVALID_CONTEXT, None)

    def cuDeviceGet(self, ordinal):
        return SUCCESS, ordinal

    def cuDevicePrimaryCtxRetain(self, device):
        self.retained.append(device)
        return SUCCESS, PRIMARY + device

    def cuStreamGetCtx(self, stream):
        context = self._context(stream)
        return (SUCCESS, context) if context else (INVALID_CONTEXT, None)

    def cuLibraryLoadData(self, code, options, values, count, more, more_values, more_count):
        return SUCCESS, f"library of {code.decode()}"

    def cuLibraryGetKernel(self, library, name):
        return SUCCESS, 77

    def cuKernelGetFunction(self, kernel):
        return (SUCCESS, 78) if self.stack else (INVALID_CONTEXT, None)

    def cuLaunchKernel(self, f, bx, by, bz, tx, ty, tz, shared, stream, parameters, extra):
        if not self.stack or self.stack[-1] != self._context(stream):
            return (INVALID_CONTEXT,)
        if not self.refusal:
            self.launched.append((stream, self.stack[-1]))
        return (self.refusal,)

    def cuGetErrorString(self, error):
        return SUCCESS, {INVALID_CONTEXT: b"invalid device context"}.get(error, b"out of memory")

    def _context(self, stream):
        if stream in self.streams:
            return self.streams[stream]
        return self.stack[-1] if self.stack else None
