"""Who answers: a Hugging Face directory or an endpoint, asked so that a rerun pays and computes only what is missing."""
