"""Using a trained policy, without anything that trained it."""
