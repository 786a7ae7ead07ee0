"""The embedded model: its task, its tokenizer, the script that trains it, and its weights."""
