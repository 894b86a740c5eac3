"""How records travel: ports, and the buses that implement them."""
