"""What the interpreter raises. Every message names the instruction, its line, block and thread."""

from __future__ import annotations


class PtxError(Exception):
    """Base of all errors. `where` is filled in by the machine once it knows the instruction."""

    def __init__(self, message: str, thread: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.thread = thread
        self.where = ""

    def __str__(self) -> str:
        return f"{self.message}{self.where}"


class ParseError(PtxError):
    """The text is not PTX this parser understands."""


class UnknownInstructionError(PtxError):
    """An instruction, modifier or special register without an implementation."""


class OutOfBoundsError(PtxError):
    """An access outside every allocation of its memory space."""


class MisalignedError(PtxError):
    """An address that is not a multiple of the access size."""


class WarpSyncError(PtxError):
    """A *_sync instruction whose member mask and whose arriving lanes differ."""


class BarrierError(PtxError):
    """A barrier that not all threads it waits for can reach."""


class RaceError(PtxError):
    """Conflicting accesses that no barrier orders."""


class AsyncCopyError(PtxError):
    """Use of shared memory that an unfinished asynchronous operation writes or reads."""


class WgmmaError(PtxError):
    """Use of wgmma registers or shared memory without the fence or wait it needs."""


class UninitializedError(PtxError):
    """A read of a register or of shared memory that nothing has written."""


class DeviceTrapError(PtxError):
    """trap, a failed device assertion."""


class StepLimitError(PtxError):
    """More steps than allowed: an endless loop or a wait for another block."""
