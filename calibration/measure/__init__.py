"""From pictures to ranges: which pictures, what is watched, and the observers."""
