"""How controllers are trained: vectorised tasks, an environment, interchangeable trainers. No user path imports it."""
