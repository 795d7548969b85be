"""Takes the record of a GPU that ``make gpu`` wrote into bench/records, and draws the pages anew:
``python -m bench.gpu_record FOLDER/COMMIT-CARD/gpu-CARD.csv``. Rows of other shapes stay.
"""

from __future__ import annotations

import sys
from pathlib import Path

from . import draw, records

if __name__ == "__main__":
    for name in sys.argv[1:]:
        records.write(records.FOLDER / Path(name).name, records.read(Path(name)))
    draw.gpu_tables()
