"""Files of a corpus, of every format, to Documents."""
