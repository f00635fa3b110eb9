"""What the inputs' tokenizers say; the vocabulary and the chat template of the output.

Most merges need little of it, so nothing is imported here.
"""
