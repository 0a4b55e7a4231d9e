"""GGUF files and Modelfiles, by the code of llama.cpp."""
