"""Upper blocks tuned on the server: what is asked, how activations are checked, trained on, and averaged."""
