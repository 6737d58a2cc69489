"""Texts from a causal language model: chosen token by token, searched, constrained, streamed; and candidate answers scored."""
