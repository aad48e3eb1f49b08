"""First-order and zero-order devices in one run: who is asked for which, and how both kinds of reply combine."""
