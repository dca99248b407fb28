"""A model judges answers: two against each other, ratings by rubric, or criteria one by one."""
