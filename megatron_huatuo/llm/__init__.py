"""One client of OpenAI-compatible endpoints: requests, retries, the log of requests, budget and prices."""
