"""The served path as a discrete-event simulation: its percentiles, its highest rate, its best setting, and fleets of it."""
