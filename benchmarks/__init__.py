"""Speed, as fractions of this machine's own peak or as ratios within one run."""
