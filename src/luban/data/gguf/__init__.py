"""GGUF files: what is in them, their blocks of quantised numbers, their tokenizer. How a model is built of one is `models.interop`."""
