"""How the miniature was made: its training, report and logs."""
