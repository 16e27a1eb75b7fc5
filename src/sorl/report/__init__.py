"""What a run's numbers say: statistics, figures and one page that holds them all."""
