"""Codecs that hold a tensor in fewer bits, and give it back: NF4, int8, block-FP8, W4A16; and those only read."""
