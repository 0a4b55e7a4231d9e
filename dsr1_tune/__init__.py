"""dsr1-tune: adapt mixture-of-experts language models to a domain.

One way through: data → train → serve. Each stage reads files and leaves files. Layers import only downward:
cli > train | serve > runs > models | data > moe > config > errors.
"""

__version__ = "0.1.0"
