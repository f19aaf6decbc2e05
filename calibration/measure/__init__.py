"""From pictures to ranges: the sample, what is watched, and the observers."""
