"""Raw files in, arrays of interactions and examples out. Knows no torch and no tokenizer."""
