"""What a record becomes as tokens: the recipe's chat format, the tokenizer's own template, text as it is."""
