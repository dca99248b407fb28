"""Exam formats, one file each; docs/add_an_exam.md says how to add one. `registry` finds them by looking into this folder."""
