"""Tables 6 and 7: encoders and their rivals as clusterers of COIL-20 and CMU PIE."""

from .cells import RESULTS, check, read, run
from .protocol import PROTOCOLS, Protocol
from .tables import page, text, write

__all__ = ["PROTOCOLS", "RESULTS", "Protocol", "check", "page", "read", "run", "text", "write"]
