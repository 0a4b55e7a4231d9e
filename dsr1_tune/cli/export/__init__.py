"""Commands that merge, quantize, compare and export."""
