"""Outcomes to panes to windows: what is known of a run, second by second."""
