"""Tables 4 and 5: encoders and their rivals as classifiers of MNIST and Indian Pines."""

from . import figures
from .cells import RESULTS, check, read, run
from .protocol import PROTOCOLS, Protocol
from .tables import page, text, write

__all__ = [
    "PROTOCOLS",
    "RESULTS",
    "Protocol",
    "check",
    "figures",
    "page",
    "read",
    "run",
    "text",
    "write",
]
