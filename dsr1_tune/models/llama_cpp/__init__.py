"""Run GGUF models by llama.cpp in a process of its own."""
