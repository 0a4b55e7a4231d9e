"""What a text says: its words, its final answer, and the quantities in it."""
