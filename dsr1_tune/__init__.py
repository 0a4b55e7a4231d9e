"""dsr1-tune: adapt mixture-of-experts language models to a domain.

One way through: data → train → export → serve, all of it in `adapt`. Each stage reads files and leaves files. Layers
import only downward: cli > adapt > train | export | serve > runs > models | data > moe > settings > config > errors.
"""

import os

__version__ = "0.1.0"

# Threads that wait for one another spin for milliseconds, on processors that others could use: beside other programs a
# step takes many times as long. It counts only before torch is loaded. benchmarks/busy.py measures it.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
