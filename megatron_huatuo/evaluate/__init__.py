"""Evaluation: exams, pairwise judging and a chat, on a Hugging Face directory or an endpoint and nothing else of ours."""
