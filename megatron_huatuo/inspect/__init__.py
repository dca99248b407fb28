"""One file an artefact: what `tools/inspect_artifact.py` shows a person, traces included."""
