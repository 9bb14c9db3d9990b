"""Which candidates are lawful for this model, machine and objective, and why the others are not."""
