"""A run as a whole: plan, pressure, guard, isolation proof, report."""
