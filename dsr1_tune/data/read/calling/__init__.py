"""What a row says of functions: the tools that it offers, the calls of its turns, and the nulls in both."""
