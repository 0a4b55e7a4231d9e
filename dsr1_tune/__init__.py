"""dsr1-tune: adapt mixture-of-experts language models to a domain.

One way through: data → train → export → serve, all of it in `adapt`. Each stage reads files and leaves files. Layers
import only downward: cli > adapt > train | export | serve > runs > models | data > moe > settings > config > errors.
"""

__version__ = "0.1.0"
