"""``fedspine compare``: methods x seeds as runs of their own, and what came of them side by side."""
