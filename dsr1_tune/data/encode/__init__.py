"""Turn records into token ids: chat template, thinking, loss masks, packing."""
