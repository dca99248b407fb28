"""Publishing a trained checkpoint as a Hugging Face directory that proved itself equal to it."""
