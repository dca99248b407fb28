"""What `tools/check_cluster.py` measures: ranks, links, files and clocks."""
