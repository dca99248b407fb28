"""Plain text as the data stages see it: repair, language, sentences, shingles. Knows no records and no files."""
