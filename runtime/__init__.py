"""One model running over ranks. Knows no Ray, no HTTP, no terminal."""
