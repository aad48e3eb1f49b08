"""``fedspine compare``: methods x seeds, each as a run of its own, and their results side by side."""
